"""Checks of arguments: every message names the argument, the rule and the value received."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from lowrank_core._typing import Array, Namespace
from lowrank_core.option_names import unknown_option


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    allowed = list(choices)
    # Of one type with it: 8.0 and `True` are equal to integers, and arrays are equal to nothing and everything.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        listed = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def check_kind(name: str, value: object, kind: Any, words: str) -> None:
    """Raise ``TypeError`` unless ``value`` is of a ``kind``, a type or several, which ``words`` say."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {words}, got {value!r}")


def check_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``TypeError`` unless every option ``given`` to ``where`` is a ``known`` one."""
    allowed = set(known)
    for option in given:
        if option not in allowed:
            raise TypeError(unknown_option(where, option, allowed))


def check_number(
    name: str,
    value: object,
    *,
    low: float,
    high: float = float("inf"),
    include_low: bool = True,
) -> None:
    """Raise unless a host number lies in ``[low, high)`` (``(low, high)`` without ``include_low``).

    Arrays of other libraries than NumPy pass unseen: they may be traced, and reading one would force its value to the
    host.
    """
    value = plain_number(name, value)
    if isinstance(value, bool) or not (isinstance(value, Real) or hasattr(value, "dtype")):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not isinstance(value, Real):
        return
    number = float(value)
    # Written so that NaN, which compares false with everything, fails.
    if not ((low <= number if include_low else low < number) and number < high):
        rule = f"{'at least' if include_low else 'greater than'} {low:g}"
        if high == float("inf"):
            rule += " and finite"
        else:
            rule += f" and less than {high:g}"
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def plain_number(name: str, value: Any) -> Any:
    """Return a number of NumPy or another kind, a scalar or a 0-d array, as Python's ``int`` or ``float``.

    Arrays of other libraries are returned as they are: they may be traced, or far from the host. So is what is no
    number.

    Raises
    ------
    ValueError
        For a NumPy array that is not 0-d.
    TypeError
        For one of no real numbers.
    """
    if type(value) in (int, float, bool):
        return value
    if hasattr(value, "__array_interface__"):
        if value.ndim:
            raise ValueError(f"{name} must be a single number, got an array of shape {value.shape}")
        if value.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be a number, got {value!r}")
        return int(value) if value.dtype.kind in "iu" else float(value)
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def check_integer(name: str, value: object, *, low: int) -> int:
    """Return ``value`` as Python's ``int``; raise unless it is an integer, NumPy's included, of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if int(value) < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return int(value)


def check_betas(betas: object) -> None:
    """Raise unless ``betas`` is a pair of decay rates in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
    for index, beta in enumerate(betas):
        check_number(f"betas[{index}]", beta, low=0, high=1)


def check_floating(name: str, x: Array, xp: Namespace) -> None:
    """Raise ``TypeError`` unless ``x`` holds real floating-point numbers, none wider than float64."""
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"{name} must be of a real floating-point dtype, got {x.dtype}")
    if xp.finfo(x.dtype).bits > 64:
        raise TypeError(f"{name} must be of float64 or a narrower dtype, got {x.dtype}")


def check_matrix(name: str, x: Array, xp: Namespace) -> None:
    """Raise unless ``x`` is a real floating-point matrix or a stack of them, none of them empty."""
    check_floating(name, x, xp)
    if x.ndim < 2:
        raise ValueError(f"{name} must have at least two dimensions, got shape {tuple(x.shape)}")


def check_axis(axis: object, ndim: int) -> int:
    """Return ``axis`` of an array of ``ndim`` dimensions counted from the last, -1, -2, ...

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or there is no such axis.
    """
    if isinstance(axis, bool) or not isinstance(axis, Integral):
        raise TypeError(f"axis must be an integer, got {axis!r}")
    place = int(axis)
    if not -ndim <= place < ndim:
        raise ValueError(
            f"axis must be from {-ndim} to {ndim - 1} for {ndim} dimensions, got {place}"
        )
    return place - ndim if place >= 0 else place


def check_matrix_axis(axis: object, ndim: int) -> int:
    """Return ``axis`` as -1 or -2; raise unless it is one of the last two of ``ndim`` dimensions."""
    found = check_axis(axis, ndim)
    if found not in (-1, -2):
        raise ValueError(f"axis must be one of the last two of {ndim} dimensions, got {axis}")
    return found
