"""Markov chains from many points at once."""
