"""The user's model: where it comes from, how it is kept, and whether two of them agree."""
