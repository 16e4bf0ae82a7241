"""Draws of the posterior that the user already has: what `OneStep.distil` makes of them."""
