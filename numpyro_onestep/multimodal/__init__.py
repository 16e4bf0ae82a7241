"""Posteriors of several modes: search for modes, tempered SMC, and fits of a mixture."""
