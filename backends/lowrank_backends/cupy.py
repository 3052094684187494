"""CuPy: the native DCT of ``cupyx.scipy.fft``, which runs on the arrays' own GPU."""

from __future__ import annotations

from typing import Any

from cupyx.scipy import fft as cupyx_fft

from lowrank_backends._numpy_like import NumpyLikeOps


class CupyOps(NumpyLikeOps):
    """Operations on CuPy arrays."""

    scipy_fft = cupyx_fft

    def is_readable(self, x: Any) -> bool:
        """Return ``False``: reading would wait for the GPU."""
        return False
