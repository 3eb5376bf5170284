"""Winning the accuracy back by training."""
