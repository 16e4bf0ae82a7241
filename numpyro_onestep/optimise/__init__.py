"""Finding minima of the potential."""
