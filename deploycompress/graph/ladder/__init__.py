"""What is tried, one thing after the other, where an INT8 file has lost too much."""
