"""Exact weights of draws, and what follows from them: evidence, smoothing, resampling."""
