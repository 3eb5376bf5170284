"""Many pipelines of one kind: what is tried, in which order, where, and what came of it."""
