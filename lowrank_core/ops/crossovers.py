"""From what size on which way to transform is the faster, as numbers.

A product with the whole basis beats a fast transform for small matrices, a product with a few basis vectors beats it
for low ranks; where, depends on the machine. What is chosen changes speed and rounding, never the mathematics, so it is
not measured behind the user's back: without `lowrank_core.calibrate` or `lowrank_core.use_crossovers` every run chooses
as the last one did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from lowrank_core._typing import Device, Namespace
from lowrank_core.ops.libraries import library_name
from lowrank_core.option_types import Method

#: The ways to transform that a caller may ask for.
METHODS = get_args(Method)


@dataclass(frozen=True)
class Crossovers:
    """Where products stop being faster than fast transforms.

    Attributes
    ----------
    small_size
        Below this size a product with the whole basis is faster.
    few_columns
        Pairs of a size and the number of basis vectors up to which a product with these alone is faster; measured on
        the way back, which every step goes. Sizes in between take the entry of the nearest.
    """

    small_size: int
    few_columns: tuple[tuple[int, int], ...]

    def columns(self, size: int) -> int:
        """Return the number of basis vectors of ``size`` up to which a product with them is faster."""
        return min(self.few_columns, key=lambda pair: abs(math.log(pair[0] / size)))[1]

    def by_matrix(self, size: int) -> bool:
        """Return whether a transform of ``size`` is a product with the whole basis matrix."""
        return size < self.small_size

    def by_columns(self, rank: int, size: int) -> bool:
        """Return whether ``rank`` basis vectors are projected on, and lifted from, by a product with these alone."""
        return size < self.small_size or rank <= self.columns(size)


#: What was measured, by library and kind of device: what `device_key` returns.
measured: dict[str, Crossovers] = {}


def device_key(xp: Namespace, device: Device) -> str:
    """Return what a library on a device is called in :data:`measured` and in files."""
    return f"{library_name(xp)} on {str(device or 'default').partition(':')[0]}"
