"""How many channels each group keeps, one file an allocation."""
