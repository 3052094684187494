"""What steps do to each matrix, measured every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lowrank_core.rules.diagnostics import (
    MatrixDiagnostics,
    Measures,
    Observation,
    measure,
    observe,
    root_mean_square,
    rows_of,
)
from lowrank_torch._matrices import as_matrices, matrix_views
from lowrank_torch._plan import BoundMatrices, Member, Place
from lowrank_torch._schedule import Schedule
from lowrank_torch._stack import Stack
from lowrank_torch._state import stacked, state_of
from lowrank_torch._step import gradients_of, together

# Of larger matrices, sizes are told from so many numbers: weights held twice would be memory that nobody planned.
_SAMPLE = 2**20


class _Watched(NamedTuple):
    """Parameters stepped together whose step is measured, as they were before."""

    #: With no members but those that are measured.
    stack: Stack
    observed: list[Observation]
    #: Copies of some rows of each stack of their matrices.
    samples: list[Tensor]


class _Part(NamedTuple):
    """What was measured of one stack of matrices of several parameters."""

    measures: Measures
    update_rms: Any
    weight_rms: Any

    def of(self, place: int) -> _Part:
        """Return what was measured of one of the parameters."""
        own: Any = [None if array is None else array[place] for array in self.measures]
        return _Part(Measures(*own), self.update_rms[place], self.weight_rms[place])


class _Seen(NamedTuple):
    """What was measured of a parameter, still on its device."""

    step: int
    #: Of each stack of matrices of the plan.
    parts: list[_Part]
    #: The parameter's place in them; ``None`` where it was measured alone.
    place: int | None


class Recorder:
    """Measures a step of each matrix in ``every``, at the first choice of columns from then on.

    Numbers stay on their device until somebody asks for them, so that no step waits. A step at which nothing can be due
    looks at no parameter.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._seen: MutableMapping[Tensor, _Seen] = WeakTensorKeyDictionary()
        #: For each schedule, how many of its steps nothing is due at.
        self._idle: MutableMapping[Schedule, int] = WeakKeyDictionary()

    def begin(self, schedule: Schedule, members: Mapping[Place, Member]) -> list[_Watched] | None:
        """Return what is to be known before a step, of the parameters that are due; ``None`` where none can be."""
        if idle := self._idle.get(schedule, 0):
            self._idle[schedule] = idle - 1
            return None
        watched = []
        for stack in schedule.stacks_of(members):
            waits = zip(stack.members, self._due_in(stack), strict=True)
            due = [member for member, wait in waits if wait == 1]
            if due:
                watched.append(_watched(stack._replace(members=due)))
        return watched

    def end(
        self, schedule: Schedule, members: Mapping[Place, Member], watched: Sequence[_Watched]
    ) -> None:
        """Measure what the step did to these, and know when the next ones are due."""
        for stack, observed, samples in watched:
            after, parts = _samples(stack), []
            gradients = _gradients(stack)
            for number, bound in enumerate(stack.matrices):
                state = _state(stack, bound)
                measures = measure(observed[number], gradients[number], state, bound.step)
                moved = after[number].to(samples[number].dtype) - samples[number]
                sizes = (root_mean_square(x, bound.step) for x in (moved, after[number]))
                parts.append(_Part(measures, *sizes))
            several = len(stack.members) > 1
            for place, member in enumerate(stack.members):
                seen = _Seen(member.state["step"], parts, place if several else None)
                self._seen[member.parameter] = seen
        waits = (wait for stack in schedule.stacks_of(members) for wait in self._due_in(stack))
        self._idle[schedule] = min(waits, default=self._every) - 1

    def _due_in(self, stack: Stack) -> list[int]:
        """Return for each member at the how-manieth step from now on it is measured."""
        # What lies on several ranks, nobody has the sums of.
        done = [member.state["step"] for member in stack.members]
        # Nor does the host know what a device has counted.
        unknown = stack.plan.sharding is not None or isinstance(done[0], Tensor)
        if unknown or stack.members[0].projected is not None:
            # Not at the next one, however often others are measured.
            return [self._every + 1] * len(stack.members)
        earliest = [
            self._earliest(member.parameter, own)
            for member, own in zip(stack.members, done, strict=True)
        ]
        chooses = stack.matrices[0].step.config.refreshes
        due = {step: next(filter(chooses, count(step))) for step in {*earliest}}
        return [due[step] - own for step, own in zip(earliest, done, strict=True)]

    def _earliest(self, parameter: Tensor, done: int) -> int:
        seen = self._seen.get(parameter)
        # One that was seen later has been set back since.
        return (
            done + 1 if seen is None or seen.step > done else max(done + 1, seen.step + self._every)
        )

    def rows(
        self, parameters: Iterable[Tensor], name_of: Callable[[Tensor], str]
    ) -> list[MatrixDiagnostics]:
        """Return what was measured last of each matrix of ``parameters``."""
        rows = []
        for parameter in parameters:
            if (seen := self._seen.get(parameter)) is not None:
                place, parts = seen.place, seen.parts
                own = parts if place is None else [part.of(place) for part in parts]
                rows += rows_of(name_of(parameter), seen.step, own)
        return rows


def _watched(stack: Stack) -> _Watched:
    observed = [
        observe(gradient, _state(stack, bound), bound.step, stack.rule)
        for gradient, bound in zip(_gradients(stack), stack.matrices, strict=True)
    ]
    return _Watched(stack, observed, [sample.clone() for sample in _samples(stack)])


def _state(stack: Stack, bound: BoundMatrices) -> Any:
    states = [state_of(member.state, bound, stack.rule) for member in stack.members]
    return stacked(states, bound.step.layout.batch)


def _gradients(stack: Stack) -> list[Tensor]:
    """Return each stack of matrices of the gradients, of several parameters as one."""
    own = (gradients_of(_gradient(member), stack.plan) for member in stack.members)
    return [*map(together, zip(*own, strict=True))]


def _gradient(member: Member) -> Any:
    return member.parameter.grad


def _samples(stack: Stack) -> list[Tensor]:
    """Return rows of each stack of matrices of the parameters, evenly spaced: all where there are few numbers."""
    plan = stack.plan
    own = []
    for member in stack.members:
        whole = as_matrices(member.parameter.detach(), plan.batch_dims, transposed=plan.transposed)
        views = matrix_views(whole, plan.local_shapes, plan.batch_dims)
        own.append([view[..., :: max(1, view.numel() // _SAMPLE), :] for view in views])
    return [*map(together, zip(*own, strict=True))]
