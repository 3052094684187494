"""A step is a generator of sums over the rows of a matrix, and these are its drivers.

With the columns known, every row of a matrix is stepped by itself; the whole matrix enters a step only through a few
sums: n column sums, one norm, an r x r Gram matrix. So a step *yields* a :class:`Sum` wherever it needs one, is sent
back ``finish(total)``, and returns its result. Who drives it decides what the total is: on one device the partial sum
itself, for parts of a matrix the sum over the parts, for shards an all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from threading import Lock
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
    answers: list[Any] | None = None,
) -> list[T]:
    """Return the results of steps on the parts of one matrix, run in lockstep; note in ``answers`` what they are sent.

    Between two sums ``for_each`` runs the parts in any order, side by side if it likes. Partial sums are added in the
    order of the parts, so that results do not depend on who was first.
    """
    answer: Any = None
    results: list[Any] = [None] * len(parts)
    while True:
        total = _Total()

        def advance(index: int, answer: Any = answer, total: _Total = total) -> None:
            try:
                total.add(index, parts[index].send(answer))
            except StopIteration as stop:
                results[index] = stop.value

        for_each(advance, range(len(parts)))
        if total.finish is None:
            return results
        answer = total.finish(total.sum)
        if answers is not None:
            answers.append(answer)


def replay(step: Generator[Any, Any, T], answers: Iterable[Any]) -> T:
    """Return the result of a step on a part that is sent the ``answers`` that `run_parts` has noted."""
    try:
        step.send(None)
        for answer in answers:
            step.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise ValueError("answers must be to all sums of a step, got fewer")


class _Total:
    """The sum of what parts give, each added as soon as all before it have been.

    Kept until the last has given its own, the Gram matrices of many parts would be larger than the matrix.
    """

    def __init__(self) -> None:
        self.sum: Any = None
        self.finish: Callable[[Any], Any] | None = None
        self._next = 0
        self._early: dict[int, Sum] = {}
        self._lock = Lock()

    def add(self, index: int, request: Sum) -> None:
        """Add what part ``index`` gives, and what has waited for it."""
        with self._lock:
            self._early[index] = request
            while self._next in self._early:
                partial, self.finish = self._early.pop(self._next)
                if partial is not None:
                    self.sum = partial if self.sum is None else self.sum + partial
                self._next += 1
