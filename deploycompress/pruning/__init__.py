"""Which channels go, and their removal."""
