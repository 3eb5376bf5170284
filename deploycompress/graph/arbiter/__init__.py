"""The arbiter between artefacts: builds candidates, checks and measures them, and chooses."""
