"""Examples, each run by its path or by ``python -m examples.NAME``."""
