"""The model's own shape: which coordinates interact, and an order that makes use of it."""
