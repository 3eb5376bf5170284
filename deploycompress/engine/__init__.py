"""Takes a pipeline through its steps: reuse or run, record, resume."""
