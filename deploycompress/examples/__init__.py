"""Models the pipelines use; each needs torch and nothing else."""
