"""The user's data and task, by name."""
