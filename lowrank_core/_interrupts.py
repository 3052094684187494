"""Calls that no interrupt comes between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from operator import call


def at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Make calls of compiled functions, as `functools.partial` binds them, with nothing in between.

    No handler of a signal and no tracer runs within them, nor within what makes them one after the other.
    """
    deque(map(call, calls), maxlen=0)
