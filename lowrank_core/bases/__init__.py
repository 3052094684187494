"""Fixed orthonormal bases: the DCT and its kin."""
