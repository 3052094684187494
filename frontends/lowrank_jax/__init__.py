"""Optax gradient transformations with low-rank optimizer state."""
