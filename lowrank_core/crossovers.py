"""From what size on which way to transform is the faster: measured once for a machine's device, kept in a file.

A product with the whole basis beats a fast transform for small matrices, a product with a few basis vectors beats it
for low ranks; where, depends on the machine. What is chosen changes speed and rounding, never the mathematics, so it is
not measured behind the user's back: without :func:`calibrate`, every run chooses as the last one did.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lowrank_core._files import replacing
from lowrank_core._typing import Device, Namespace
from lowrank_core.names import library_name

#: Names a file to use instead of the user's own.
ENVIRONMENT = "LOWRANK_CORE_CROSSOVERS"
_VERSION = 1
# Numbers in the arrays that are timed: enough to hide the cost of a call, few enough to be quick.
_NUMBERS = 2**21
_ROUNDS = 5
# Times that a number of columns is guessed and tried: a product with twice as many takes less than twice as long.
_GUESSES = 2


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


_measured: dict[str, Crossovers] = {}


def measured_on(xp: Namespace, device: Device) -> Crossovers | None:
    """Return what was measured for a library on a device, if anything was."""
    return _measured.get(_key(xp, device))


def calibrate(
    xp: Namespace,
    *,
    device: Device = None,
    sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048, 4096),
    path: str | os.PathLike[str] | None = None,
) -> Crossovers:
    """Measure which way to transform is the faster on a device, use it from now on, and write it down for later runs.

    Parameters
    ----------
    xp
        Array namespace to measure with.
    device
        Device to measure on; the library's default place by default.
    sizes
        Sizes of the transformed dimension to measure at, ascending.
    path
        File to keep the result in, beside those of other devices; by default the one that every run reads: what the
        environment variable ``LOWRANK_CORE_CROSSOVERS`` names, or ``lowrank-core/crossovers.json`` in the user's cache
        folder.

    Returns
    -------
    Crossovers
        What was measured.

    Raises
    ------
    ValueError
        If ``sizes`` is empty or not ascending.
    """
    # Operations look crossovers up, and bases use operations.
    from lowrank_core.bases import get_basis
    from lowrank_core.ops import ops_for_namespace

    sizes = tuple(sizes)
    if not sizes or sorted(set(sizes)) != list(sizes) or sizes[0] < 2:
        raise ValueError(f"sizes must be ascending integers of at least 2, got {sizes!r}")
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
    _measured[_key(ops.xp, ops.device_of(ops.xp.empty(0, device=device)))] = found
    _write(default_path() if path is None else Path(path))
    return found


def default_path() -> Path:
    """Return the file that every run reads."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lowrank-core" / "crossovers.json"


def load(path: Path) -> None:
    """Take over what is written in a file, if there is one; warn of one that cannot be read."""
    try:
        content = json.loads(path.read_text())
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}, not {_VERSION}")
        for key, entry in content["crossovers"].items():
            few = tuple((int(size), int(columns)) for size, columns in entry["few_columns"])
            _measured[key] = Crossovers(int(entry["small_size"]), few)
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.warn(
            f"{path} must be a file that lowrank_core.calibrate wrote, and is not used ({error}); delete it or "
            f"calibrate again",
            stacklevel=2,
        )


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {key: asdict(value) for key, value in sorted(_measured.items())}
    with replacing(path) as aside:
        aside.write_text(json.dumps({"version": _VERSION, "crossovers": entries}, indent=1))


def _key(xp: Namespace, device: Device) -> str:
    return f"{library_name(xp)} on {str(device or 'default').partition(':')[0]}"


def _moved(x: Any, count: int, ops: Any, *, method: str) -> Any:
    """Return matrices less an update on so many basis vectors, as a step moves parameters."""
    from lowrank_core.update import LowRankUpdate, subtract_lifted

    stacked, _, size = x.shape
    # Spread over all: the time of a product does not depend on which.
    spread = ops.xp.arange(count, dtype=ops.xp.int32, device=ops.device_of(x)) * (size // count)
    indices = ops.xp.broadcast_to(spread, (stacked, count))
    factor = ops.xp.ones((*x.shape[:-1], count), dtype=x.dtype, device=ops.device_of(x))
    return subtract_lifted(x, LowRankUpdate(factor, indices, -1, size), method, ops)


def _seconds(work: Callable[[], Any]) -> float:
    """Return the least of several times, the first left out; reading a number waits for the device."""
    best = math.inf
    for round_ in range(_ROUNDS + 1):
        start = time.perf_counter()
        float(work()[0, 0, 0])
        if round_:
            best = min(best, time.perf_counter() - start)
    return best
