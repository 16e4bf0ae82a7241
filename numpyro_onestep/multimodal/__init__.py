"""Posteriors of several modes: finding them, and the mixture that the flow starts from."""
