"""Which widths lose least within a budget: a greedy search, and the exact answer by integer programming."""
