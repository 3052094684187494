"""Measuring which way to transform is the faster on a device."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lowrank_core._checks import check_integer, check_kind
from lowrank_core._typing import Device, Namespace
from lowrank_core.bases.registry import get_basis
from lowrank_core.ops.crossovers import Crossovers, device_key, measured
from lowrank_core.ops.crossovers_file import ENVIRONMENT, read_crossovers, write_crossovers
from lowrank_core.ops.registry import ops_for_namespace
from lowrank_core.subspace.update import LowRankUpdate, materialize

# Numbers in the arrays that are timed: enough to hide the cost of a call, few enough to be quick.
_NUMBERS = 2**21
_ROUNDS = 5
# Times that a number of columns is guessed and tried: a product with twice as many takes less than twice as long.
_GUESSES = 2


def calibrate(
    xp: Namespace,
    *,
    device: Device = None,
    sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048, 4096),
    path: str | os.PathLike[str] | None = None,
) -> Crossovers:
    """Measure which way to transform is the faster on a device, and use it from now on in this process.

    Parameters
    ----------
    xp
        Array namespace to measure with.
    device
        Device to measure on; the library's default place by default.
    sizes
        Sizes of the transformed dimension to measure at, ascending.
    path
        File to keep the result in, beside those of other devices. By default the file that the environment variable
        ``LOWRANK_CROSSOVERS`` names; without one nothing is written. Later runs read it where that variable names it,
        or `use_crossovers` does.

    Returns
    -------
    Crossovers
        What was measured.

    Raises
    ------
    TypeError, ValueError
        If ``sizes`` is empty or not ascending, or ``path`` is a file of something else.
    OSError
        If the file cannot be written.
    """
    check_kind("sizes", sizes, Sequence, "ascending integers")
    sizes = tuple(check_integer("each of sizes", size, low=0) for size in sizes)
    if not sizes or sorted(set(sizes)) != list(sizes) or sizes[0] < 2:
        raise ValueError(f"sizes must be ascending integers of at least 2, got {sizes!r}")
    named = os.environ.get(ENVIRONMENT) if path is None else path
    file = Path(named) if named else None
    ops, basis = ops_for_namespace(xp), get_basis("dct")
    small, few = 0, []
    for size in sizes:
        # As steps find them: square matrices, the small ones stacked.
        stacked, count = max(1, _NUMBERS // size**2), max(1, size // 16)
        x = ops.xp.ones((stacked, size, size), dtype=ops.xp.float32, device=device)
        for _ in range(_GUESSES):
            moved = partial(_moved, x, count, ops)
            fast, product = (_seconds(partial(moved, method=way)) for way in ("fft", "matmul"))
            count = max(1, min(size, int(count * fast / product)))
        few.append((size, count))
        # The last of the sizes up to which the product has always been faster.
        if small == len(few) - 1:
            transform = partial(basis.transform, x, ops, axis=-1)
            fast, product = (_seconds(partial(transform, method=way)) for way in ("fft", "matmul"))
            small = len(few) if product < fast else small
    found = Crossovers(sizes[small - 1] + 1 if small else sizes[0], tuple(few))
    measured[device_key(ops.xp, ops.device_of(ops.xp.empty(0, device=device)))] = found
    if file is not None:
        write_crossovers(file)
    return found


def use_crossovers(path: str | os.PathLike[str]) -> None:
    """Use from now on in this process what `calibrate` has written to a file.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not one that `calibrate` wrote; nothing of it is used then.
    """
    read_crossovers(Path(path))


def _moved(x: Any, count: int, ops: Any, *, method: str) -> Any:
    """Return matrices less an update on so many basis vectors, as a step moves parameters."""
    stacked, _, size = x.shape
    # Spread over all: the time of a product does not depend on which.
    spread = ops.xp.arange(count, dtype=ops.xp.int32, device=ops.device_of(x)) * (size // count)
    indices = ops.xp.broadcast_to(spread, (stacked, count))
    factor = ops.xp.ones((*x.shape[:-1], count), dtype=x.dtype, device=ops.device_of(x))
    return x - materialize(LowRankUpdate(factor, indices, -1, size), method=method, ops=ops)


def _seconds(work: Callable[[], Any]) -> float:
    """Return the least of several times, the first left out; reading a number waits for the device."""
    best = math.inf
    for round_ in range(_ROUNDS + 1):
        start = time.perf_counter()
        float(work()[0, 0, 0])
        if round_:
            best = min(best, time.perf_counter() - start)
    return best
