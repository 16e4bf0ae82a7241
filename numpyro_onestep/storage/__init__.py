"""A run in one file, without its data and without code."""
