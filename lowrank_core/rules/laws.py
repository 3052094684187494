"""What the numbers of an array of state can be: said once, beside shape and dtype, and checked before it is loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

from lowrank_core.ops.registry import ops_for
from lowrank_core.subspace.empty import columns_of

# The largest numbers that dtypes hold, beyond which a number of another dtype would become infinite.
_LARGEST = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "bfloat16": 3.3895313892515355e38,
    "float16": 65504.0,
}
_INTEGERS = {"int32": (-(2**31), 2**31 - 1), "uint8": (0, 255)}


class Law(NamedTuple):
    """The numbers that an array can hold."""

    #: The least of them; ``None`` where the dtype alone says it.
    least: int | None = None
    #: Of columns, kept as `lowrank_core.subspace.empty` says, how many there are.
    columns: int | None = None

    @property
    def words(self) -> str:
        """The law in words."""
        if self.columns is not None:
            return f"strictly ascending from 0 to {self.columns - 1}"
        return "finite" if self.least is None else f"finite and at least {self.least}"


ANY = Law()
NON_NEGATIVE = Law(least=0)


def check_law(what: str, x: Any, dtype: str, law: Law) -> None:
    """Raise ``ValueError`` unless the array ``x`` holds numbers of ``dtype`` by a ``law``; ``what`` says whose it is.

    Parameters
    ----------
    what
        How a message begins that says what must be otherwise.
    x
        Any shape, real numbers that the host can read.
    dtype
        Name of the dtype that they are kept in, which may be another.
    law
        What is asked of them.
    """
    xp = ops_for(x).xp
    wanted = "real floating" if dtype in _LARGEST else "integral"
    if not xp.isdtype(x.dtype, wanted):
        raise ValueError(f"{what} must be {dtype}, got {x.dtype}")
    if 0 in x.shape:
        return
    low, high = xp.min(x), xp.max(x)
    if dtype in _LARGEST:
        # Written so that NaN, which compares false with everything, fails.
        largest = _LARGEST[dtype]
        right = float(low) >= (-largest if law.least is None else law.least)
        right = right and float(high) <= largest
    else:
        least, most = _INTEGERS[dtype]
        right = int(low) >= (least if law.least is None else law.least) and int(high) <= most
    if right and law.columns is not None:
        columns = columns_of(x, law.columns)
        right = int(low) >= -law.columns and int(high) < law.columns
        right = right and bool(xp.all(columns[..., 1:] > columns[..., :-1]))
    if not right:
        raise ValueError(f"{what} must be {law.words}, got numbers from {low} to {high}")


def check_count(what: str, value: Any) -> int:
    """Return a step count; raise ``ValueError`` unless it is an integer, as such or as a float, of at least 0."""
    if type(value) not in (int, float) or not 0 <= value < 2**63 or value != int(value):
        raise ValueError(f"{what} must be an integer of at least 0, got {value!r}")
    return int(value)
