"""What opens an artefact and runs it; each file here travels to devices alone."""
