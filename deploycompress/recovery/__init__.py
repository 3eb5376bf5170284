"""Training, and getting accuracy back after compression."""
