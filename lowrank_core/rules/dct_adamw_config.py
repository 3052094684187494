"""DCT-AdamW's options, and the state they lead to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias, get_args

from lowrank_core._checks import check_betas, check_choice, check_integer, check_kind, check_number
from lowrank_core._typing import Array, Scalar
from lowrank_core.bases.registry import STORED_BASES, get_basis
from lowrank_core.layout import SIDES, Layout, check_rank, layout_of
from lowrank_core.numerics.quantization import BITS, block_multiple
from lowrank_core.ops.crossovers import METHODS
from lowrank_core.option_types import (
    BasisName,
    BiasCorrection,
    Bits,
    Method,
    MomentBits,
    Residual,
    Score,
    SecondMoment,
    Selection,
    Side,
    StateDTypeLike,
)
from lowrank_core.rules.laws import NON_NEGATIVE, Law
from lowrank_core.rules.options import number, plain_options, speed_choice
from lowrank_core.rules.residuals import DEFAULT_SCALE, RESIDUALS
from lowrank_core.rules.state import ArraySpec, buffer_spec, check_state_dtype
from lowrank_core.subspace.columns import SCORES, SELECTIONS

BIAS_CORRECTIONS = get_args(BiasCorrection)
SECOND_MOMENTS = get_args(SecondMoment)

#: The number of steps that a newcomer's second moment, seeded from its column's energy, counts as.
SEED_COUNT = 10


@dataclass(frozen=True)
class DCTAdamWConfig:
    """Options of DCT-AdamW; numbers may be traced values, everything else is static.

    Attributes
    ----------
    rank
        Basis columns kept: an integer, or a fraction in (0, 1] of the transformed dimension.
    betas
        Decay rates of the first and second moment, each in [0, 1), dimensionless.
    eps
        Added to the root of the second moment, in the units of the gradient.
    basis
        Name of a basis: a fixed one (``"dct"``, ``"dct3"``, ``"local_dct"``, ``"hartley"``, ``"hadamard"``, ``"haar"``,
        ``"legendre"``, ``"random"`` or ``"random:SEED"``, ``"identity"``, or a registered one), or ``"svd"`` (leading
        singular vectors, recomputed at each refresh, as in GaLore) or ``"power"`` (one step of warm-started power
        iteration at each refresh, as in LDAdam). The last two are baselines: they store their vectors and rotate the
        moments.
    score
        Norm by which columns are chosen, ``"l2"`` or ``"l1"``.
    refresh_every
        Columns are chosen anew at step 1 and at every step divisible by this; after a first gradient of zeros, at the
        first step whose gradient is none. A gradient of zeros leaves columns and moments where they are.
    side
        ``"right"`` transforms rows, ``"left"`` columns, ``"auto"`` along the shorter dimension.
    method
        How to transform: ``"auto"``, ``"matmul"`` or ``"fft"`` (the basis's fast transform). A choice of speed alone.
    residual
        What becomes of the part of the gradient outside the chosen columns: ``"discard"``, ``"error_feedback"``
        (state of the size of the parameter), ``"sign"``, ``"scaled"``, ``"normalized"`` or ``"bounded"``; see
        `lowrank_core.residuals`.
    residual_scale
        Share of the step's rate that a residual part moves with; ``None`` for the policy's own default.
    feedback_bits
        8 or 4 to keep the fed-back residual in that many bits; ``None`` for ``state_dtype``.
    selection
        ``"top"`` takes the best columns, ``"sampled"`` draws them without replacement with odds by score.
    score_decay
        Choose by a running mean of column energies with this decay in [0, 1), not by this gradient's alone.
    hysteresis
        A chosen column keeps its place until a challenger's score is larger by this fraction.
    bias_correction
        ``"step"`` corrects both moments by the step count; ``"column"`` by the age of each column, so that a newcomer
        moves by a full unit step at first; ``"gentle"`` leaves the first moment uncorrected and seeds a newcomer's
        second from its column's running energy, so that it fades in.
    update_scale
        What the whole update is multiplied by, weight decay not, dimensionless: so that rates found for AdamW suit.
    second_moment
        ``"full"`` keeps the mean square of every coefficient on the chosen columns; ``"factored"`` those of the rows
        and of the columns of all coefficients, ``m + n`` numbers, and divides by what follows from these.
    moment_bits
        8 to keep the first moment in that many bits, beside a factored second one; ``None`` for ``state_dtype``.
    state_dtype
        The dtype the moments are kept in, by name or as any library's object; ``None`` for float32 (float64 for float64
        gradients). Arithmetic is in float32 at least; narrower state is rounded stochastically, or it would never
        decay, and float16 keeps the root of the second moment.
    seed
        Seed of what is random: sampled columns and the start of a power iteration.

    Raises
    ------
    TypeError, ValueError
        If an option is none of the above, or two options do not go together.
    """

    rank: int | float = 0.25
    betas: tuple[Scalar, Scalar] = number((0.9, 0.999))
    eps: Scalar = number(1e-8)
    basis: BasisName = "dct"
    score: Score = "l2"
    refresh_every: int = 1
    side: Side = "auto"
    method: Method = speed_choice("auto")
    residual: Residual = "sign"
    residual_scale: Scalar | None = number(None)
    feedback_bits: Bits | None = None
    selection: Selection = "top"
    score_decay: Scalar | None = number(None)
    hysteresis: Scalar = number(0.0)
    bias_correction: BiasCorrection = "step"
    update_scale: Scalar = number(1.0)
    second_moment: SecondMoment = "full"
    moment_bits: MomentBits | None = None
    state_dtype: StateDTypeLike | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_rank(self.rank)
        plain_options(self, "rank", "refresh_every", "feedback_bits", "moment_bits", "seed")
        check_betas(self.betas)
        check_number("eps", self.eps, low=0)
        check_kind("basis", self.basis, str, "the name of a basis")
        if self.basis not in STORED_BASES:
            get_basis(self.basis)
        check_choice("score", self.score, SCORES)
        check_integer("refresh_every", self.refresh_every, low=1)
        check_choice("side", self.side, SIDES)
        check_choice("method", self.method, METHODS)
        check_choice("residual", self.residual, RESIDUALS)
        if self.residual_scale is not None:
            check_number("residual_scale", self.residual_scale, low=0)
        check_choice("feedback_bits", self.feedback_bits, (None, *BITS))
        check_choice("selection", self.selection, SELECTIONS)
        if self.score_decay is not None:
            check_number("score_decay", self.score_decay, low=0, high=1)
        check_number("hysteresis", self.hysteresis, low=0)
        check_choice("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        check_number("update_scale", self.update_scale, low=0, include_low=False)
        check_choice("second_moment", self.second_moment, SECOND_MOMENTS)
        check_choice("moment_bits", self.moment_bits, (None, *get_args(MomentBits)))
        check_state_dtype(self.state_dtype)
        check_integer("seed", self.seed, low=0)
        self._check_together()

    def _check_together(self) -> None:
        if self.feedback_bits is not None and self.residual != "error_feedback":
            raise ValueError(
                f"feedback_bits must be None unless residual='error_feedback', got {self.feedback_bits!r} with "
                f"residual={self.residual!r}"
            )
        if self.residual_scale is not None and self.residual not in DEFAULT_SCALE:
            raise ValueError(
                f"residual_scale must be None unless residual is one of {', '.join(DEFAULT_SCALE)}, got "
                f"{self.residual_scale!r} with residual={self.residual!r}"
            )
        if self.score_decay is not None and self.score != "l2":
            raise ValueError(
                f"score_decay must be None with score={self.score!r} (a column's energy is its l2 norm squared), "
                f"got {self.score_decay!r}"
            )
        if self.factored:
            self._check_factored()
        else:
            self._check_full()
        if self.stored:
            wanted = {
                "residual": "anything but 'normalized'" if self.residual == "normalized" else "",
                "score": "'l2'" if self.score != "l2" else "",
                "selection": "'top'" if self.selection != "top" else "",
                "hysteresis": "0"
                if isinstance(self.hysteresis, (int, float)) and self.hysteresis
                else "",
                "score_decay": "None" if self.score_decay is not None else "",
                "bias_correction": "'step'" if self.bias_correction != "step" else "",
            }
            for option, rule in wanted.items():
                if rule:
                    raise ValueError(
                        f"{option} must be {rule} with basis={self.basis!r}, which has no columns to choose from, "
                        f"got {getattr(self, option)!r}"
                    )

    def _check_full(self) -> None:
        """Refuse what needs a factored second moment."""
        for option, value in (("residual", "bounded"), ("moment_bits", 8)):
            if getattr(self, option) == value:
                raise ValueError(
                    f"{option} must not be {value!r} unless second_moment='factored', got "
                    f"second_moment={self.second_moment!r}"
                )

    def _check_factored(self) -> None:
        """Refuse what a factored second moment does not go with."""
        if self.stored:
            raise ValueError(
                f"second_moment must be 'full' with basis={self.basis!r}, which has no columns but those kept, got "
                f"{self.second_moment!r}"
            )
        if self.bias_correction != "step":
            raise ValueError(
                "bias_correction must be 'step' with second_moment='factored', which no column is new to, got "
                f"{self.bias_correction!r}"
            )
        beta1, decay = self.betas[0], self.energy_decay
        if isinstance(beta1, float) and isinstance(decay, float) and beta1 >= decay**0.5:
            # A first moment of gradients long forgotten by the second would be divided by next to nothing.
            raise ValueError(
                "betas must have a first entry below the root of the second (of score_decay, where given) with "
                f"second_moment='factored', got {beta1!r} and {decay!r}"
            )

    @property
    def factored(self) -> bool:
        """Whether the second moment is kept as its means over rows and over columns."""
        return self.second_moment == "factored"

    @property
    def stored(self) -> bool:
        """Whether the basis is computed from the gradient and kept as state."""
        return self.basis in STORED_BASES

    @property
    def transforms_every_step(self) -> bool:
        """Whether every step needs all coefficients, not only a step that chooses columns."""
        return self.factored or self.rest_in_coefficients

    @property
    def rest_in_coefficients(self) -> bool:
        """Whether what is outside the chosen columns goes back with them, through one transform of all coefficients."""
        return self.residual in ("scaled", "normalized", "bounded") and not self.stored

    def block_multiple(self, axis: int) -> int:
        """Return the multiples at which parts of the rows of matrices begin whose codes are their own."""
        return block_multiple(axis, self.feedback_bits or self.moment_bits)

    def part_multiple(self, layout: Layout) -> int | None:
        """Return the multiples at which parts of the rows of a matrix begin that can be stepped in lockstep.

        ``None`` where they cannot be, since vectors are computed from the whole matrix.
        """
        if self.stored:
            return None
        return self.block_multiple(layout.axis)

    def norms(self, refresh: bool) -> tuple[str, ...]:
        """Return the norms of columns that a step needs."""
        norms = (self.score,) if refresh else ()
        if "l2" not in norms and self.keeps_energy and (refresh or self.transforms_every_step):
            norms = (*norms, "l2")
        return norms

    @property
    def keeps_energy(self) -> bool:
        """Whether the running energy of every column is part of the state."""
        return (
            self.score_decay is not None
            or self.residual == "normalized"
            or self.bias_correction == "gentle"
            or self.factored
        )

    @property
    def energy_decay(self) -> Scalar:
        """The decay rate of the running energy."""
        return self.betas[1] if self.score_decay is None else self.score_decay

    def simplified(self, layout: Layout) -> Self:
        """Return options of the same steps with less to do: these, for what Adam does depends on the basis."""
        return self

    def refreshes(self, step: Any) -> Any:
        """Return whether ``step`` (from 1) chooses columns anew: a host boolean where that can be known."""
        # Where every step does, that is known before the count is: no branch is compiled for the others.
        return self.refresh_every == 1 or (step == 1) | (step % self.refresh_every == 0)

    @property
    def projects(self) -> bool:
        """Whether a step that keeps its columns needs the coefficients on these alone (see `dct_adamw_project`)."""
        return self.residual == "discard" and self.refresh_every > 1 and not self.factored

    def check_projected(self, step: Any) -> None:
        """Raise ``ValueError`` unless ``step`` can be done on coefficients on the current columns alone.

        Of a traced count, whether it refreshes, and so this part of the rule, is the caller's to know.
        """
        if not self.projects:
            raise ValueError(
                "steps on projected gradients need residual='discard', refresh_every > 1 and second_moment='full', got "
                f"residual={self.residual!r}, refresh_every={self.refresh_every} and "
                f"second_moment={self.second_moment!r}"
            )
        if isinstance(step, int) and self.refreshes(step):
            raise ValueError(
                f"a step that chooses columns needs the whole gradient, and step {step} does with "
                f"refresh_every={self.refresh_every}"
            )

    def energy_count(self, step: Any) -> Any:
        """Return how many gradients the running energy has seen after ``step`` steps, a number or an array."""
        if self.transforms_every_step or self.refresh_every == 1:
            return step
        return step // self.refresh_every + 1

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the geometry of matrices of ``shape`` under these options."""
        layout = layout_of(shape, rank=self.rank, side=self.side)
        if not self.stored:
            get_basis(self.basis).check_size(layout.size)
        elif layout.rank > layout.rows:
            raise ValueError(
                f"rank must not exceed either dimension with basis={self.basis!r}, got {self.rank!r} for shape "
                f"{tuple(shape)}"
            )
        return layout

    def state_spec(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, ArraySpec]:
        """Return shape, dtype and law of every array of the state of matrices of ``shape``.

        ``dtype`` names the dtype that moments are kept in unless ``state_dtype`` says otherwise.
        """
        layout, moments = self.layout(shape), self.state_dtype or dtype
        spec = buffer_spec("first_moment", layout.low_rank_shape, moments, dtype, self.moment_bits)
        if self.factored:
            spec["row_energy"] = ArraySpec(layout.rows_shape, dtype, NON_NEGATIVE)
        else:
            spec["second_moment"] = ArraySpec(layout.low_rank_shape, moments, NON_NEGATIVE)
        if self.stored:
            spec["vectors"] = ArraySpec((*layout.batch, layout.size, layout.rank), dtype)
        else:
            columns = Law(columns=layout.size)
            spec["indices"] = ArraySpec(layout.indices_shape, "int32", columns)
        if self.bias_correction != "step":
            spec["ages"] = ArraySpec(layout.indices_shape, "int32", NON_NEGATIVE)
        if self.residual == "error_feedback":
            spec |= buffer_spec("feedback", layout.shape, moments, dtype, self.feedback_bits)
        if self.residual == "scaled":
            spec["residual_norm"] = ArraySpec(layout.batch, dtype, NON_NEGATIVE)
        if self.keeps_energy:
            spec["energy"] = ArraySpec(layout.scores_shape, dtype, NON_NEGATIVE)
        if self.selection == "sampled":
            spec["key"] = ArraySpec(layout.batch or (1,), "int32")
        return spec


#: An array, or ``None`` where the options need none; `lowrank_core.rules.state.check_state` sees to which it is.
MaybeArray: TypeAlias = Any


class DCTAdamWState(NamedTuple):
    """What DCT-AdamW remembers of one matrix (or of a stack of matrices) between steps; ``None`` where not needed."""

    #: Steps done, a host number, or a 0-d int32 array where steps are traced.
    step: int | Array
    #: Running mean of the coefficients, ``(..., m, r)`` (right side) or ``(..., r, n)`` (left side), or codes for it
    #: (see `lowrank_core.Quantized`).
    first_moment: Array
    #: Running mean of their squares, of the same shape; in float16 the root of it.
    second_moment: MaybeArray = None
    #: The chosen columns of a fixed basis, ``(..., r)`` int32, ascending; a place that no column has won, all others
    #: being rounding, holds one as ``j - size``.
    indices: MaybeArray = None
    #: The vectors of a basis that is not fixed, ``(..., size, r)``.
    vectors: MaybeArray = None
    #: Steps each column has been chosen for, ``(..., r)`` int32.
    ages: MaybeArray = None
    #: What earlier steps left out, ``(..., m, n)``, or codes for it (see `lowrank_core.Quantized`).
    feedback: MaybeArray = None
    #: Minimum of each block of codes.
    feedback_minimum: MaybeArray = None
    #: Scale of each block of codes.
    feedback_scale: MaybeArray = None
    #: Norm of the last scaled residual, ``(...)``.
    residual_norm: MaybeArray = None
    #: Running mean square of every column's coefficients, ``(..., size)``, not corrected for its start at zero.
    energy: MaybeArray = None
    #: Running mean square of every row of all coefficients, ``(..., m, 1)`` (right side) or ``(..., 1, n)`` (left
    #: side), not corrected for its start at zero.
    row_energy: MaybeArray = None
    #: Minimum of each block of codes of the first moment.
    first_moment_minimum: MaybeArray = None
    #: Scale of each block of codes of the first moment.
    first_moment_scale: MaybeArray = None
    #: Key of the random draws, ``(...)`` or ``(1,)`` int32.
    key: MaybeArray = None
