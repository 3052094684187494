"""What compiled cosine transforms of one length share: factors, the order of coefficients in memory, and phases.

Two rows of real numbers are the real and the imaginary part of one complex row, and its Fourier transform ``F`` holds
the coefficients of both: with ``p_k = sqrt(1 / 2n) exp(-i pi k / 2n)``::

    S_k = p_k F_k + conj(p_k) F_{n-k}        S_{n-k} = i (p_k F_k - conj(p_k) F_{n-k})

The transform leaves ``F`` in the order that its factors ``f_1 f_2 ... = n`` make: coefficient ``k`` lies at
``place(k) = (k mod f_1) n / f_1 + place'(k div f_1)``, with ``place'`` that of the factors that are left. There it is
read, and from there the inverse begins: nothing is put in order but on the way from and to a matrix.

References
----------
J. Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. ASSP 28 (1980) 27. W. M. Gentleman and
G. Sande, "Fast Fourier transforms: for fun and profit", AFIPS 29 (1966) 563, for the form that needs no order.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

#: Numbers side by side for each sample of a panel: its rows.
PANEL = 16
# The largest prime factor: transforms of that length are sums of as many products.
_LARGEST_PRIME = 64
# Rows are read and written in blocks of so many numbers.
_MULTIPLE = 8


class Tables(NamedTuple):
    """What transforms of rows of ``n`` numbers need, in NumPy's arrays. Offsets count numbers of a panel."""

    n: int
    #: ``n`` is their product.
    factors: Any
    #: For each factor where its phases begin among those of all, and those of its own short transform.
    starts: Any
    short_starts: Any
    #: Phases, real and imaginary parts in turn, float32.
    twiddles: Any
    short: Any
    #: For each coefficient its offset.
    place: Any
    #: Offsets of coefficients ``k`` and ``n - k``, ``0 < k < n / 2``, in the order of memory, and ``p_k``.
    pairs: Any
    phases: Any


@functools.lru_cache(maxsize=64)
def factors(n: int) -> tuple[int, ...] | None:
    """Return the factors of ``n`` that a transform goes by, or ``None`` where there is none of such rows."""
    if n < _MULTIPLE or n % _MULTIPLE:
        return None
    found, left = [], n
    # The factor 2 is the last: there it needs no phases.
    for factor in (4, *range(3, _LARGEST_PRIME, 2), 2):
        while left % factor == 0:
            found.append(factor)
            left //= factor
    return tuple(found) if left == 1 else None


@functools.lru_cache(maxsize=16)
def tables(n: int) -> Tables:
    """Return what transforms of rows of ``n`` numbers need; there are `factors` of it."""
    cut = factors(n)
    if cut is None:
        raise ValueError(f"rows must have a length that row_kernels takes, got {n}")
    twiddles, short, left = [], [], n
    for factor in cut:
        length = left // factor
        turns = np.outer(np.arange(length), np.arange(1, factor)) / left
        twiddles.append(_circle(turns))
        short.append(_circle(np.outer(np.arange(factor), np.arange(factor)) / factor))
        left = length
    place = np.zeros(1, np.int64)
    for factor in reversed(cut):
        k = np.arange(factor * len(place))
        place = (k % factor) * len(place) + place[k // factor]
    place *= PANEL
    k = np.arange(1, n // 2)
    k = k[np.argsort(np.minimum(place[k], place[n - k]))]
    return Tables(
        n, np.array(cut), _starts(twiddles), _starts(short), np.concatenate(twiddles),
        np.concatenate(short), place, np.stack([place[k], place[n - k]], -1).ravel(),
        _circle(k / (4 * n)) * np.float32(math.sqrt(0.5 / n)),
    )  # fmt: skip


def _circle(turns: Any) -> Any:
    """Return ``exp(-2 pi i turns)`` as a flat float32 array of real and imaginary parts."""
    angle = 2 * math.pi * turns.ravel()
    return np.stack([np.cos(angle), -np.sin(angle)], -1).ravel().astype(np.float32)


def _starts(parts: list[Any]) -> Any:
    return np.cumsum([0, *map(len, parts)])[:-1]
