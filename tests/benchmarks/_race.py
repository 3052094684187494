"""Timing that a noisy machine does not bend: contenders take turns, and what counts is the median of their ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    #: Seconds of a step that was done before, with what it needed to begin; zero if there was none.
    first: float = 0.0


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
        """Median over the rounds of the seconds divided by the reference's in the same round.

        Of a few rounds that would be left to chance: then it is the ratio of the medians.
        """
        ratios = self._ratios(reference)
        if len(ratios) < LEAST_ROUNDS:
            return self.seconds() / reference.seconds()
        return statistics.median(ratios)

    def quartiles(self, reference: Times) -> tuple[float, float]:
        """First and third quartile of the ratio over the rounds."""
        ratios = self._ratios(reference)
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
        return first, third

    def _ratios(self, reference: Times) -> list[float]:
        pairs = zip(self._spread(), reference._spread(), strict=False)
        return [own / other for own, other in pairs]

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


#: Just enough to see that all of it runs.
QUICK = Effort(0.0, least=2, most=2, floor=2)


def race(contenders: Sequence[Contender], effort: Effort) -> dict[str, Times]:
    """Time all contenders in turns; the first is the reference, and has every round.

    Each has at least `effort.least` rounds, if there is time for so many of all; of those that take longest there are
    fewer otherwise, at least `effort.floor`. What time is left goes into more rounds of the fast ones.
    """
    times = {contender.name: Times(contender.period) for contender in contenders}
    repeats: dict[str, int] = {}
    costs: dict[str, float] = {}
    for contender in contenders:
        # Where there is no time for a second one, this is its only round.
        enough = effort.floor == 1 and contender.first > effort.seconds / 4
        once = contender.first if enough else _timed(contender, contender.step, 1)
        if enough:
            times[contender.name].step.append(once)
        repeats[contender.name] = max(1, math.ceil(_SHORTEST / once))
        costs[contender.name] = once * repeats[contender.name]
    once_is_enough = [name for name, own in times.items() if own.step]
    begin = time.perf_counter()
    _refreshes(contenders, times, effort)
    left = max(effort.seconds - (time.perf_counter() - begin), 0.5 * effort.seconds)
    waiting = {name: cost for name, cost in costs.items() if name not in once_is_enough}
    rounds = dict.fromkeys(once_is_enough, 0) | _rounds(waiting, left, effort)
    rounds[contenders[0].name] = max(*rounds.values(), effort.floor)
    begin = time.perf_counter()
    for turn in range(max(rounds.values())):
        if turn >= effort.least and time.perf_counter() - begin > left:
            break
        for place in _order(len(contenders), turn):
            contender = contenders[place]
            if turn < rounds[contender.name]:
                seconds = _timed(contender, contender.step, repeats[contender.name])
                times[contender.name].step.append(seconds)
    return times


#: What time is read from: that of the process on all cores, and that on the wall.
CLOCKS = {"CPU": time.process_time, "wall": time.perf_counter}
Taken = Mapping[str, Mapping[str, Sequence[float]]]


def take_turns(turns: Mapping[str, Callable[[], object]], rounds: int) -> Taken:
    """Return by clock and name the seconds of each of ``rounds`` rounds, after one that is not counted."""
    taken: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in turns} for clock in CLOCKS
    }
    names = list(turns)
    for turn in range(rounds + 1):
        for place in _order(len(names), turn):
            name = names[place]
            begin = {clock: read() for clock, read in CLOCKS.items()}
            turns[name]()
            for clock, read in CLOCKS.items():
                taken[clock][name].append(read() - begin[clock])
    return {clock: {name: own[1:] for name, own in times.items()} for clock, times in taken.items()}


def median_ratio(own: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over rounds of the ratios of seconds to those of ``base`` in the same round."""
    return statistics.median(one / other for one, other in zip(own, base, strict=True))


def _rounds(costs: dict[str, float], seconds: float, effort: Effort) -> dict[str, int]:
    """Return how many rounds each has, the fast first: what they do not need is there for the slow."""
    rounds = {}
    waiting = len(costs)
    share = seconds / max(1, waiting)
    for name, cost in sorted(costs.items(), key=lambda item: item[1]):
        affordable = int(seconds / waiting / cost)
        own = effort.least if affordable >= effort.least else max(affordable, effort.floor)
        seconds -= own * cost
        waiting -= 1
        # Half of an even share is for rounds beyond the least.
        rounds[name] = max(own, min(effort.most, int(share / 2 / cost)))
    return rounds


def _order(count: int, turn: int) -> Sequence[int]:
    """Return the order of a round: another one begins each time."""
    return [(place + turn) % count for place in range(count)]


def _refreshes(contenders: Sequence[Contender], times: dict[str, Times], effort: Effort) -> None:
    for contender in contenders:
        if contender.refresh is None:
            continue
        own = times[contender.name]
        if contender.refresh_expected > max(1.0, 0.6 * effort.seconds):
            own.left_out = contender.refresh_expected
            continue
        begin = time.perf_counter()
        while len(own.refresh) < effort.least:
            own.refresh.append(_timed(contender, contender.refresh, 1))
            if time.perf_counter() - begin > effort.seconds / len(contenders):
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
