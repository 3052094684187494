"""Timing that a noisy machine does not bend: contenders take turns, and what counts is the median of their ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

#: Rounds below which no median is called one; a contender that is too slow for them is reported with its number.
LEAST_ROUNDS = 7
MOST_ROUNDS = 41
# A clock reads to better than a thousandth of this.
_SHORTEST = 2e-3


@dataclass(frozen=True)
class Contender:
    """Something to time, `step`, of which every `period`-th call is the dearer `refresh` instead."""

    name: str
    step: Callable[[], object]
    refresh: Callable[[], object] | None = None
    period: int = 1
    #: Runs before every timed call, outside the time.
    before: Callable[[], object] | None = None
    #: Seconds that a refresh may be expected to take; it is left out where there is no time for one.
    refresh_expected: float = 0.0


@dataclass
class Times:
    """Seconds of one contender, round by round."""

    period: int = 1
    step: list[float] = field(default_factory=list)
    refresh: list[float] = field(default_factory=list)
    #: Expected seconds of a refresh for which there was no time, or zero.
    left_out: float = 0.0

    def seconds(self) -> float:
        """Median of a step, the refreshes spread over their period."""
        return statistics.median(self._spread())

    def ratio(self, reference: Times) -> float:
        """Median over the rounds of the seconds divided by the reference's in the same round."""
        pairs = zip(self._spread(), reference._spread(), strict=False)
        return statistics.median(own / other for own, other in pairs)

    def quartiles(self, reference: Times) -> tuple[float, float]:
        """First and third quartile of the ratio."""
        pairs = zip(self._spread(), reference._spread(), strict=False)
        ratios = [own / other for own, other in pairs]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
        return first, third

    def remark(self) -> str:
        """Number of rounds where they are few, and what was left out."""
        parts = []
        if len(self.step) < LEAST_ROUNDS:
            parts.append(rounds_of(len(self.step)))
        if self.refresh and len(self.refresh) < LEAST_ROUNDS:
            count = len(self.refresh)
            parts.append(f"refresh timed {'once' if count == 1 else f'{count} times'}")
        if self.left_out:
            parts.append(f"without its refresh (about {self.left_out:.0f} s, not timed)")
        return "; ".join(parts)

    def _spread(self) -> list[float]:
        if not self.refresh:
            return self.step
        refresh = statistics.median(self.refresh) / self.period
        return [seconds * (1 - 1 / self.period) + refresh for seconds in self.step]


def rounds_of(count: int) -> str:
    """Return a number of rounds in words."""
    return f"{count} round" if count == 1 else f"{count} rounds"


@dataclass(frozen=True)
class Effort:
    """How long and how often to time."""

    seconds: float
    least: int = LEAST_ROUNDS
    most: int = MOST_ROUNDS
    #: Rounds of one that is too slow for the least.
    floor: int = 1

    def share(self, part: float) -> Effort:
        """The same effort for a part of the time."""
        return replace(self, seconds=self.seconds * part)


def race(contenders: Sequence[Contender], effort: Effort) -> dict[str, Times]:
    """Time all contenders in turns; the first is the reference, and has every round.

    Each has at least `effort.least` rounds, unless these alone would take it longer than its share of the time; then
    it has as many as that share holds, and `effort.floor` at least.
    """
    share = effort.seconds / len(contenders)
    times = {contender.name: Times(contender.period) for contender in contenders}
    repeats: dict[str, int] = {}
    rounds: dict[str, int] = {}
    for contender in contenders:
        contender.step()
        once = _timed(contender, contender.step, 1)
        repeats[contender.name] = max(1, math.ceil(_SHORTEST / once))
        taken = once * repeats[contender.name]
        affordable = int(share / taken)
        if affordable < effort.least and taken * effort.least <= 2 * share:
            affordable = effort.least
        rounds[contender.name] = min(effort.most, max(affordable, effort.floor))
    reference = contenders[0].name
    rounds[reference] = max(*rounds.values(), effort.least)

    _refreshes(contenders, times, share, effort)
    stop = time.perf_counter() + effort.seconds
    for turn in range(max(rounds.values())):
        if turn >= effort.least and time.perf_counter() > stop:
            break
        for place in _order(len(contenders), turn):
            contender = contenders[place]
            if turn < rounds[contender.name]:
                seconds = _timed(contender, contender.step, repeats[contender.name])
                times[contender.name].step.append(seconds)
    return times


def _order(count: int, turn: int) -> Sequence[int]:
    """Return the order of a round: another one begins each time."""
    return [(place + turn) % count for place in range(count)]


def _refreshes(
    contenders: Sequence[Contender], times: dict[str, Times], share: float, effort: Effort
) -> None:
    for contender in contenders:
        if contender.refresh is None:
            continue
        own = times[contender.name]
        if contender.refresh_expected > max(1.0, 2 * share):
            own.left_out = contender.refresh_expected
            continue
        begin = time.perf_counter()
        while len(own.refresh) < effort.least:
            own.refresh.append(_timed(contender, contender.refresh, 1))
            if time.perf_counter() - begin > share:
                break


def _timed(contender: Contender, call: Callable[[], object], repeats: int) -> float:
    total = 0.0
    for _ in range(repeats):
        if contender.before is not None:
            contender.before()
        begin = time.perf_counter()
        call()
        total += time.perf_counter() - begin
    return total / repeats
