"""A step is a generator of sums over the rows of a matrix, and these are its drivers.

With the columns known, every row of a matrix is stepped by itself; the whole matrix enters a step only through a few
sums: n column sums, one norm, an r x r Gram matrix. So a step *yields* a :class:`Sum` wherever it needs one, is sent
back ``finish(total)``, and returns its result. Who drives it decides what the total is: on one device the partial sum
itself, for parts of a matrix the sum over the parts, for shards an all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Sum(NamedTuple):
    """What a step on some rows of a matrix asks for: the sum over all of its rows, and what is made of it."""

    #: The sum over the rows at hand, an array; ``None`` where nothing is to be added up, only done once for all parts.
    partial: Any
    #: Makes of the total what the step is sent back; the same for all parts of a matrix, so it is called once.
    finish: Callable[[Any], Any]


#: A step: it yields sums, is sent what they finish as, and returns its result.
Steps: TypeAlias = Generator[Sum, Any, T]


def run(step: Generator[Any, Any, T]) -> T:
    """Return the result of a step whose rows are all at hand: every partial sum is the total."""
    answer = None
    while True:
        try:
            request = step.send(answer)
        except StopIteration as stop:
            # A graph compiler reads `args`, but not `value`.
            result: Any = stop.args[0] if stop.args else None
            return result
        answer = request.finish(request.partial)


def run_parts(
    parts: Sequence[Generator[Any, Any, T]],
    for_each: Callable[[Callable[[int], object], Iterable[int]], object],
) -> list[T]:
    """Return the results of steps on the parts of one matrix, run in lockstep.

    Between two sums ``for_each`` runs the parts in any order, side by side if it likes. Partial sums are added in the
    order of the parts, so that results do not depend on who was first.
    """
    answer: Any = None
    requests: list[Any] = [None] * len(parts)
    results: list[Any] = [None] * len(parts)

    def advance(index: int) -> None:
        try:
            requests[index] = parts[index].send(answer)
        except StopIteration as stop:
            requests[index], results[index] = None, stop.value

    while True:
        for_each(advance, range(len(parts)))
        first = requests[0]
        if first is None:
            return results
        total = first.partial
        if total is not None:
            for request in requests[1:]:
                total = total + request.partial
        answer = first.finish(total)
