"""Where artefacts are measured."""
