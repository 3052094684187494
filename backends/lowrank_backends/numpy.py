"""NumPy: SciPy's native DCT where SciPy is installed."""

from __future__ import annotations

try:
    from scipy import fft as scipy_fft
except ImportError:  # optional: without SciPy, Makhoul's algorithm runs on numpy.fft
    scipy_fft = None

import numpy as np

from lowrank_backends._numpy_like import NumpyLikeOps


class NumpyOps(NumpyLikeOps):
    """Operations on NumPy arrays."""

    scipy_fft = scipy_fft
    # A product of two matrices of the one is no elementwise product, and masks are lost on the way.
    refused_types = (np.matrix, np.ma.MaskedArray)
