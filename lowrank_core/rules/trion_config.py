"""Trion's options, and the state they lead to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, get_args

from lowrank_core._checks import check_choice, check_number
from lowrank_core._typing import Array, Scalar
from lowrank_core.bases.registry import get_basis
from lowrank_core.layout import SIDES, Layout, check_rank, layout_of
from lowrank_core.numerics.orthogonalization import check_orthogonalization, is_direct
from lowrank_core.numerics.quantization import BITS, block_multiple
from lowrank_core.ops.crossovers import METHODS
from lowrank_core.option_types import (
    BasisName,
    Bits,
    Coefficients,
    Method,
    Score,
    Side,
    StateDTypeLike,
    UpdateScale,
)
from lowrank_core.rules.laws import NON_NEGATIVE
from lowrank_core.rules.options import number, plain_options, speed_choice
from lowrank_core.rules.state import ArraySpec, buffer_spec, check_state_dtype
from lowrank_core.subspace.columns import SCORES

SCALES = get_args(UpdateScale)


@dataclass(frozen=True)
class TrionConfig:
    """Options of Trion; numbers may be traced values, everything else is static.

    Attributes
    ----------
    rank
        Basis columns the update has: an integer, or a fraction in (0, 1] of the transformed dimension.
    momentum
        Decay rate of the momentum in [0, 1), dimensionless.
    basis
        Name of a fixed orthonormal basis (see `DCTAdamWConfig`).
    score
        Norm by which columns are chosen at every step, ``"l2"`` or ``"l1"``.
    side
        ``"right"`` transforms rows, ``"left"`` columns, ``"auto"`` along the shorter dimension.
    method
        How to transform: ``"auto"``, ``"matmul"`` or ``"fft"``. A choice of speed alone.
    steps, coefficients
        Newton-Schulz steps, and their polynomials: ``"muon"`` or ``"polar_express"``.
    scale
        What an ``m x n`` update is multiplied by: ``"none"`` 1, ``"spectral"`` ``sqrt(max(1, m / n))`` (the paper's),
        ``"dion"`` ``sqrt(m / n)``, ``"rms"`` ``0.2 sqrt(max(m, n))``.
    rank_scaling
        Multiply the update by ``sqrt(size / rank)`` as well, so that its norm, and with it the best rate, does not
        depend on the rank.
    update_scale
        What the whole update is multiplied by, weight decay not, dimensionless: so that rates found for AdamW suit.
    row_decay
        Decay rate in [0, 1) of the running mean square of each row of the orthonormalised update, by whose root it is
        divided, the update staying as long as it was (NorMuon, arXiv 2510.05491); ``None`` leaves rows as they are. The
        rows are columns where the transform is along these.
    momentum_bits
        8 or 4 to keep the momentum in that many bits; ``None`` for ``state_dtype``.
    state_dtype
        The dtype the momentum is kept in, by name or as any library's object; ``None`` for float32 (float64 for float64
        gradients).

    Raises
    ------
    TypeError, ValueError
        If an option is none of the above.
    """

    rank: int | float = 0.25
    momentum: Scalar = number(0.85)
    basis: BasisName = "dct"
    score: Score = "l2"
    side: Side = "auto"
    method: Method = speed_choice("auto")
    steps: int = 5
    coefficients: Coefficients = "muon"
    scale: UpdateScale = "spectral"
    rank_scaling: bool = False
    update_scale: Scalar = number(1.0)
    row_decay: Scalar | None = number(None)
    momentum_bits: Bits | None = None
    state_dtype: StateDTypeLike | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)
        plain_options(self, "rank", "steps", "momentum_bits")
        check_number("momentum", self.momentum, low=0, high=1)
        get_basis(self.basis)
        check_choice("score", self.score, SCORES)
        check_choice("side", self.side, SIDES)
        check_choice("method", self.method, METHODS)
        check_orthogonalization(self.steps, self.coefficients)
        check_choice("scale", self.scale, SCALES)
        check_choice("rank_scaling", self.rank_scaling, (False, True))
        check_number("update_scale", self.update_scale, low=0, include_low=False)
        if self.row_decay is not None:
            check_number("row_decay", self.row_decay, low=0, high=1)
        check_choice("momentum_bits", self.momentum_bits, (None, *BITS))
        check_state_dtype(self.state_dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the geometry of matrices of ``shape`` under these options."""
        layout = layout_of(shape, rank=self.rank, side=self.side)
        get_basis(self.basis).check_size(layout.size)
        return layout

    def simplified(self, layout: Layout) -> Self:
        """Return options of the same steps with less to do: where all columns are taken, any basis spans the same."""
        return replace(self, basis="identity") if layout.rank == layout.size else self

    def refreshes(self, step: Any) -> bool:
        """Return whether ``step`` chooses columns anew: every one does."""
        return True

    def block_multiple(self, axis: int) -> int:
        """Return the multiples at which parts of the rows of matrices begin whose codes are their own."""
        return block_multiple(axis, self.momentum_bits)

    def part_multiple(self, layout: Layout) -> int | None:
        """Return the multiples at which parts of the rows of a matrix begin that can be stepped in lockstep.

        Of at least half as many rows as the rank, so that the ``r x r`` Gram matrix of a part costs little beside it.
        ``None`` where orthonormalisation is cheaper on the whole than through the Gram matrices that parts add up.
        """
        if layout.rank > layout.rows or is_direct(layout.rows, layout.rank):
            return None
        own = self.block_multiple(layout.axis)
        return own * max(1, -(-layout.rank // (2 * own)))

    def state_spec(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, ArraySpec]:
        """Return shape, dtype and law of every array of the state of matrices of ``shape``.

        ``dtype`` names the dtype the momentum is kept in unless ``state_dtype`` says otherwise.
        """
        layout = self.layout(shape)
        kept = self.state_dtype or dtype
        spec = buffer_spec("momentum", layout.shape, kept, dtype, self.momentum_bits)
        if self.row_decay is not None:
            spec["row_energy"] = ArraySpec(layout.rows_shape, dtype, NON_NEGATIVE)
        return spec


class TrionState(NamedTuple):
    """What Trion remembers of one matrix (or of a stack of matrices) between steps."""

    #: Steps done, a host number, or a 0-d int32 array where steps are traced.
    step: int | Array
    #: Momentum and error feedback in one, ``(..., m, n)``, or codes for it (see `lowrank_core.Quantized`).
    momentum: Array
    #: Minimum of each block of codes, or ``None``.
    momentum_minimum: Array | None = None
    #: Scale of each block of codes, or ``None``.
    momentum_scale: Array | None = None
    #: Running mean squares of the rows of the orthonormalised update, ``(..., m, 1)`` or ``(..., 1, n)``, or ``None``.
    row_energy: Array | None = None
