"""A step of matrices in passes over their rows: what an adapter's kernels do in place, said in plain steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from lowrank_core._typing import A
from lowrank_core.ops.lifts import RowLift, lift_rows
from lowrank_core.ops.rows import RowMoments, RowStep, RowWrite, step_rows


@dataclass
class PassedRows(Generic[A]):
    """Matrices ``(..., m, n)`` whose rows a step passes over; their DCT is made on the way, for every question anew.

    Several matrices are answered for as one stack of them; what a step needs besides is theirs stacked too, a list of
    writes and of state one after the other. An adapter overrides all methods, or the four for a single matrix
    (`StandardOps.row_kernels`); its own work in place, and may take arrays narrower than the arithmetic, which they
    round as `lowrank_core.numerics.rounding` does.
    """

    #: The gradient of each.
    gradients: Sequence[A]
    #: What each steps.
    parameters: Sequence[A]
    #: What is added to each gradient before it is transformed, or ``None``.
    added: Sequence[A | None]
    #: Operations of the array library.
    ops: Any

    def sums(self, norms: Sequence[str]) -> A:
        """Return the sums over the columns of the coefficients, for each norm: ``(norms, ..., n)``."""
        pairs = zip(self.gradients, self.added, strict=True)
        return self._together([self.dct_sums(x, norms, plus) for x, plus in pairs], 1)

    def take(self, indices: A) -> A:
        """Return the columns ``indices`` ``(..., r)`` of the coefficients, ``(..., m, r)``."""
        places: Sequence[Any] = [indices] if len(self.gradients) == 1 else indices  # type: ignore[assignment]
        triples = zip(self.gradients, places, self.added, strict=True)
        return self._together([self.dct_columns(*triple) for triple in triples], 0)

    def step(
        self, moments: Sequence[RowMoments], job: RowStep, writes: Sequence[RowWrite]
    ) -> list[tuple[A, RowMoments]]:
        """Return parameters and moments after all that follows the choice of columns in a step of DCT-AdamW.

        Parameters
        ----------
        moments
            The state of the rows of each matrix before.
        job
            What rows need besides themselves.
        writes
            How the step is written into each parameter.

        Returns
        -------
        list
            For each matrix the new parameter and moments: of kernels those that were given, written to.
        """
        jobs = self._each(job)
        every = zip(self.parameters, self.gradients, moments, jobs, writes, strict=True)
        return [self.step_rows(*own) for own in every]

    def lift(self, job: RowLift, writes: Sequence[RowWrite]) -> list[tuple[A, A]]:
        """Return parameters and momenta, which are what is `added`, after a step of Trion that is known on its columns.

        The arguments are those of :meth:`step`.
        """
        jobs = self._each(job)
        every = zip(self.parameters, self.gradients, self.added, jobs, writes, strict=True)
        return [self.lift_rows(*own) for own in every]  # type: ignore[arg-type]

    # -- for one matrix ------------------------------------------------------------------------

    def dct_sums(self, x: A, norms: Sequence[str], plus: A | None) -> A:
        """Return the sums over the columns of the DCT of ``x + plus`` ``(..., m, n)``: ``(norms, ..., n)``."""
        S = self.ops.dct(x if plus is None else x + plus, axis=-1)
        sums: A = self.ops.xp.stack([self.ops.column_sums(S, axis=-1, norm=norm) for norm in norms])
        return sums

    def dct_columns(self, x: A, indices: A, plus: A | None) -> A:
        """Return the columns ``indices`` ``(..., r)`` of the DCT of ``x + plus`` ``(..., m, n)``."""
        S = self.ops.dct(x if plus is None else x + plus, axis=-1)
        taken: A = self.ops.take(S, indices, axis=-1)
        return taken

    def step_rows(
        self, parameter: A, gradient: A, moments: RowMoments, job: RowStep, write: RowWrite
    ) -> tuple[A, RowMoments]:
        """Do :meth:`step` for one matrix."""
        return step_rows(parameter, gradient, moments, job, write, self.ops)

    def lift_rows(
        self, parameter: A, gradient: A, momentum: A, job: RowLift, write: RowWrite
    ) -> tuple[A, A]:
        """Do :meth:`lift` for one matrix."""
        return lift_rows(parameter, gradient, momentum, job, write, self.ops)

    def _each(self, job: Any) -> Sequence[Any]:
        """Return what the rows of each matrix need."""
        count = len(self.gradients)
        return [job] if count == 1 else [job.of(place) for place in range(count)]

    def _together(self, own: Sequence[A], axis: int) -> A:
        stack: A = own[0] if len(own) == 1 else self.ops.xp.stack(own, axis=axis)
        return stack
