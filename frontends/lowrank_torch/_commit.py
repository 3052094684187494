"""Writing a step so that, whatever interrupts it, a parameter and its state are both as before it or both as after it.

A step is worked out before it is written, and what it is worked out from stays as it was until all of it has been
written, the numbers of the parameter apart. So a step that is interrupted while it writes is done again to its end, and
skips what it has written. Each block of numbers is written, and noted, by one call of a function in C: no handler of a
signal and no tracer runs within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from lowrank_core import _interrupts

#: What is noted when parameter and state are as after the step.
ALL = "all"


@dataclass
class Done:
    """What has been written of one step on parameters that are stepped together."""

    #: The blocks.
    blocks: set[Any] = field(default_factory=set)
    #: Of matrices that are stepped in passes, by number, what the last pass takes and the state after it, worked out
    #: from what that writes to; when it has been done, ``None`` and the states.
    passes: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    #: Of matrices that are stepped in parts, by number, what the sums over all parts have come to.
    answers: dict[int, list[Any]] = field(default_factory=dict)
    #: The states of such parts after the step, by number and part.
    parts: dict[tuple[int, ...], Any] = field(default_factory=dict)


def at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Make calls of functions written in C, as `functools.partial` binds them, with nothing in between."""
    if torch.compiler.is_compiling():
        for one in calls:
            one()
        return
    _interrupts.at_once(calls)


def to_the_end(work: Callable[[], object], done: Done) -> None:
    """Do work that writes; if it is interrupted after it has begun to, do it to its end before the error goes on."""
    if torch.compiler.is_compiling():
        work()
        return
    try:
        work()
    except BaseException:
        if done.blocks and ALL not in done.blocks:
            work()
        raise
