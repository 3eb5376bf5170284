"""How important a channel is, one file a criterion."""
