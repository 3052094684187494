"""How a row of ``n`` numbers is cut into two factors, and the tables that its cosine transform multiplies by.

A row of ``n = n1 * n2`` numbers, ``n1`` even, is transformed by two small matrix products with a product by phases
between them. With ``h = n1 / 2`` and ``q = n2 * i1 + i2``, its even samples ``x[2 q]``, and its odd ones from the end,
``x[n - 1 - 2 q]``, are two tiles ``(h, n2)``. Of the first product, real samples make only the rows ``k1 = 0 .. h``
necessary. Rows ``0`` and ``h`` are real, so row ``h`` travels as the imaginary part of row ``0``, and two tiles
``(h, n2)`` hold a row everywhere. The coefficients ``S`` lie in *slots*::

    A[k1, k2] = S[k1 + n1 k2]    B[k1, k2] = S[n - k1 - n1 k2]  (k1 > 0)    B[0, k2] = S[h + n1 k2]

numbered ``k1 * p2 + k2``, those of ``B`` after those of ``A``. ``p1`` and ``p2`` are ``h`` and ``n2`` padded to
powers of two.

References
----------
J. Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. ASSP 28 (1980) 27: the order of the
samples. J. W. Cooley and J. W. Tukey, Math. Comp. 19 (1965) 297: the two factors.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

# The longest side of a tile: with longer ones there are not the registers. So rows are up to 2 * 64 * 64 long.
_LONGEST_SIDE = 64
# Of the shorter sides a tile of tensor-core products has at least so many rows.
_LEAST_SIDE = 16
# Numbers of a tile that four warps hold.
_SMALL_TILE = 1024
# Numbers of a tile of split products that have the registers on chips before Hopper.
_SPLIT_TILE = 2048


class Factors(NamedTuple):
    """How a row of ``n`` numbers is cut: ``n = n1 * n2``, tiles of ``p1 x p2`` that hold ``n1 / 2 x n2``."""

    n: int
    n1: int
    n2: int
    p1: int
    p2: int

    @property
    def slots(self) -> int:
        """Places of a row's coefficients in its two tiles."""
        return 2 * self.p1 * self.p2

    @property
    def warps(self) -> int:
        """Warps of a program: with these no size spills registers in a loop (tests/gpu/compile_report.py)."""
        return 4 if self.p1 * self.p2 <= _SMALL_TILE else 8

    @property
    def registers(self) -> int:
        """Registers that a thread may have: of itself the assembler spills some so that more programs fit."""
        return 168 if self.p1 * self.p2 < _SMALL_TILE else 255


class Tables(NamedTuple):
    """What the two products of a transform multiply by, on a device."""

    #: ``(4, p1, p1)`` float16: ``sqrt(2 / n1)`` times cosine and minus sine of ``2 pi k1 i1 / n1`` for ``i1`` below
    #: ``h``, and for ``i1`` from ``h`` on. Row 0 of the sines is ``-(-1)^i1``. Where products are split, four more:
    #: what float16 leaves of these, times 2^11.
    outer: Tensor
    #: ``(2, p2, p2)`` likewise, or four: ``sqrt(1 / n2)`` times cosine and sine of ``pi k2 (4 i2 + 1) / (2 n2)``.
    inner: Tensor
    #: ``(2, p1, p2)`` float32: ``exp(-i pi k1 (4 i2 + 1) / (2 n))``, with ``k1 = h`` in row 0.
    phases: Tensor


def padded(size: int) -> int:
    """Return the power of two, at least 16, that holds ``size``: the sides of tiles that products take."""
    return max(_LEAST_SIDE, 1 << (size - 1).bit_length())


@functools.lru_cache(maxsize=256)
def factors(n: int) -> Factors | None:
    """Return the cut of ``n`` whose products cost least, or ``None`` where no two factors fit into tables."""
    best: tuple[tuple[int, int], Factors] | None = None
    for n1 in range(2, min(n, 2 * _LONGEST_SIDE) + 1, 2):
        n2, over = divmod(n, n1)
        if over or n2 > _LONGEST_SIDE:
            continue
        p1, p2 = padded(n1 // 2), padded(n2)
        # Tensor cores of Hopper do 64 rows at the least: a lower tile costs as much.
        cost = p1 * p2 * (max(p1, 64) + p2) + (p1 * p2 * 64 if p1 < 64 else 0)
        if best is None or (cost, p2) < best[0]:
            best = ((cost, p2), Factors(n, n1, n2, p1, p2))
    return None if best is None else best[1]


def splits(x: Tensor, plus: Tensor | None = None) -> bool:
    """Return whether products are as exact as float32, as ``torch.set_float32_matmul_precision("highest")`` asks.

    Else they take float16 operands, rows scaled by a power of two, and float32 sums: as exact as tf32. A row of
    bfloat16 numbers, to which none of float32 are added, is no better than that.
    """
    kinds = (x.dtype, x.dtype if plus is None else plus.dtype)
    return torch.float32 in kinds and torch.get_float32_matmul_precision() == "highest"


def holds(cut: Factors, split: bool, capability: int) -> bool:
    """Return whether a chip (90 is sm_90) has the registers for a cut, by tests/gpu/compile_report.py.

    Hopper and later read tables from shared memory in their products; before that, operands pass through registers.
    """
    return not split or capability >= 90 or cut.p1 * cut.p2 <= _SPLIT_TILE


@functools.lru_cache(maxsize=64)
def tables(cut: Factors, split: bool, device: torch.device) -> Tables:
    """Return the tables of a cut, for products that are ``split`` or not; the same tensors at every call."""
    n, n1, n2, p1, p2 = cut
    half = n1 // 2
    # An inference tensor would be of no use to a later caller that follows gradients.
    with torch.inference_mode(False), torch.no_grad():
        outer, inner, phases = (
            torch.zeros(*shape, dtype=torch.float64, device="cpu")
            for shape in ((4, p1, p1), (2, p2, p2), (2, p1, p2))
        )
        k1 = torch.arange(half, device="cpu")[:, None]
        i1, k2 = torch.arange(n1, device="cpu"), torch.arange(n2, device="cpu")
        # Whole numbers are reduced before the one rounding, so an angle is exact to the last bit.
        angle = 2 * math.pi * (k1 * i1 % n1).double() / n1
        scale = math.sqrt(2 / n1)
        cosine, sine = scale * angle.cos(), -scale * angle.sin()
        sine[0] = -scale * (1 - 2 * (i1 % 2)).double()
        for place, table in enumerate((cosine, sine)):
            outer[place, :half, :half] = table[:, :half]
            outer[place + 2, :half, :half] = table[:, half:]
        angle = math.pi * (k2 * (4 * k2[:, None] + 1) % (4 * n2)).double() / (2 * n2)
        inner[0, :n2, :n2] = angle.cos() / math.sqrt(n2)
        inner[1, :n2, :n2] = angle.sin() / math.sqrt(n2)
        k1[0] = half
        angle = math.pi * (k1 * (4 * k2 + 1) % (4 * n)).double() / (2 * n)
        phases[0, :half, :n2], phases[1, :half, :n2] = angle.cos(), -angle.sin()
        first, second = (_halves(table, split).to(device) for table in (outer, inner))
        return Tables(first, second, phases.float().to(device))


def _halves(table: Tensor, split: bool) -> Tensor:
    """Return float64 numbers in float16, and after them what that leaves, times 2^11, if ``split``."""
    high = table.half()
    return torch.cat([high, ((table - high.double()) * 2**11).half()]) if split else high


@functools.lru_cache(maxsize=64)
def slots_of(cut: Factors, device: torch.device) -> Tensor:
    """Return the slot of each coefficient, ``(n,)`` int64."""
    with torch.inference_mode(False), torch.no_grad():
        k = torch.arange(cut.n, device="cpu")
        k1, k2, half = k % cut.n1, k // cut.n1, cut.n1 // 2
        in_b = cut.p1 * cut.p2
        low = k1 * cut.p2 + k2
        high = in_b + (cut.n1 - k1) * cut.p2 + cut.n2 - 1 - k2
        slots: Tensor = torch.where(k1 < half, low, torch.where(k1 == half, in_b + k2, high))
        return slots.to(device)
