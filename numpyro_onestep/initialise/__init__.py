"""Fits of the Gaussian preconditioner, before training."""
