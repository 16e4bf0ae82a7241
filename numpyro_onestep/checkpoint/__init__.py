"""A run that was ended at any moment goes on where it was, from a file, to the same bits."""
