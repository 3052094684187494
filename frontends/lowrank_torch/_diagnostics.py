"""What steps do to each matrix, measured every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, NamedTuple

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
from lowrank_torch._plan import Member, Plan
from lowrank_torch._stack import Stack
from lowrank_torch._state import state_of
from lowrank_torch._step import gradients_of

# Of larger matrices, sizes are told from so many numbers: weights held twice would be memory that nobody planned.
_SAMPLE = 2**20


class _Watched(NamedTuple):
    """A parameter whose step is measured, as it was before."""

    member: Member
    stack: Stack
    observed: list[Observation]
    #: Copies of some rows of each stack of its matrices.
    samples: list[Tensor]


class _Part(NamedTuple):
    """What was measured of one stack of matrices."""

    measures: Measures
    update_rms: Any
    weight_rms: Any


class _Seen(NamedTuple):
    """What was measured of a parameter, still on its device."""

    step: int
    parts: list[_Part]


class Recorder:
    """Measures a step of each matrix in ``every``, at the first choice of columns from then on.

    Numbers stay on their device until somebody asks for them, so that no step waits.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._seen: MutableMapping[Tensor, _Seen] = WeakTensorKeyDictionary()

    def begin(self, stacks: Iterable[Stack]) -> list[_Watched]:
        """Return what is to be known before a step, of the parameters that are due."""
        watched = []
        for stack in stacks:
            # What lies on several ranks, nobody has the sums of.
            if stack.plan.sharding is None:
                watched += [_watched(m, stack) for m in stack.members if self._is_due(m, stack)]
        return watched

    def _is_due(self, member: Member, stack: Stack) -> bool:
        if member.projected is not None:
            return False
        step, seen = member.state["step"] + 1, self._seen.get(member.parameter)
        if seen is not None and seen.step < step < seen.step + self._every:
            return False
        return bool(stack.matrices[0].step.config.refreshes(step))

    def end(self, watched: Sequence[_Watched]) -> None:
        """Measure what the step did to these."""
        for member, stack, observed, samples in watched:
            gradients = _gradients(member, stack.plan)
            after = _samples(member.parameter, stack.plan)
            parts = []
            for number, bound in enumerate(stack.matrices):
                state = state_of(member.state, bound, stack.rule)
                measures = measure(observed[number], gradients[number], state, bound.step)
                moved = after[number].to(samples[number].dtype) - samples[number]
                sizes = (root_mean_square(x, bound.step) for x in (moved, after[number]))
                parts.append(_Part(measures, *sizes))
            self._seen[member.parameter] = _Seen(member.state["step"], parts)

    def rows(
        self, parameters: Iterable[Tensor], name_of: Callable[[Tensor], str]
    ) -> list[MatrixDiagnostics]:
        """Return what was measured last of each matrix of ``parameters``."""
        rows = []
        for parameter in parameters:
            if (seen := self._seen.get(parameter)) is not None:
                rows += rows_of(name_of(parameter), seen.step, seen.parts)
        return rows


def _watched(member: Member, stack: Stack) -> _Watched:
    gradients = _gradients(member, stack.plan)
    observed = [
        observe(gradient, state_of(member.state, bound, stack.rule), bound.step, stack.rule)
        for gradient, bound in zip(gradients, stack.matrices, strict=True)
    ]
    samples = [sample.clone() for sample in _samples(member.parameter, stack.plan)]
    return _Watched(member, stack, observed, samples)


def _gradients(member: Member, plan: Plan) -> list[Tensor]:
    gradient: Any = member.parameter.grad
    return gradients_of(gradient, plan)


def _samples(parameter: Tensor, plan: Plan) -> list[Tensor]:
    """Return rows of each stack of matrices of a parameter, evenly spaced: all where there are few numbers."""
    whole = as_matrices(parameter.detach(), plan.batch_dims, transposed=plan.transposed)
    views = matrix_views(whole, plan.local_shapes, plan.batch_dims)
    return [view[..., :: max(1, view.numel() // _SAMPLE), :] for view in views]
