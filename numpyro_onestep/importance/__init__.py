"""Exact weights of draws, and their use: evidence, smoothing, resampling."""
