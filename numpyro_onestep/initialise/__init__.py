"""Before training: the Gaussian, or the mode, that the flow starts from."""
