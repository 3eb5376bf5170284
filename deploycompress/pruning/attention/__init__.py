"""Attention modules: how their heads lie in their projections, tried out, and traced around."""
