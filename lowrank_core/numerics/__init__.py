"""Numerical tools that know nothing of optimizers: random numbers, rounding, codes, orthonormalisation."""
