"""The names that options take, and the options of each algorithm, as types: what an editor shows and checks.

Every literal is written here and nowhere else: the checks at run time, the fields of configurations and the signatures
of the frontends take theirs from it. The tests hold the dictionaries against the configurations' fields.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

from lowrank_core._typing import DType, Scalar

#: A basis by name; others may be registered, and ``"random:SEED"`` is one for every seed.
BasisName: TypeAlias = (
    Literal[
        "dct",
        "dct3",
        "local_dct",
        "hadamard",
        "haar",
        "hartley",
        "identity",
        "legendre",
        "random",
        "svd",
        "power",
    ]
    | str
)
Score: TypeAlias = Literal["l1", "l2"]
Side: TypeAlias = Literal["auto", "left", "right"]
Method: TypeAlias = Literal["auto", "matmul", "fft"]
Residual: TypeAlias = Literal[
    "discard", "error_feedback", "sign", "scaled", "normalized", "bounded"
]
Selection: TypeAlias = Literal["top", "sampled"]
BiasCorrection: TypeAlias = Literal["step", "column", "gentle"]
SecondMoment: TypeAlias = Literal["full", "factored"]
#: Bits of numbers that are kept as codes.
Bits: TypeAlias = Literal[8, 4]
#: Bits of a first moment beside a factored second one.
MomentBits: TypeAlias = Literal[8]
Coefficients: TypeAlias = Literal["muon", "polar_express"]
UpdateScale: TypeAlias = Literal["none", "spectral", "dion", "rms"]
StateDType: TypeAlias = Literal["float64", "float32", "bfloat16", "float16"]
#: A dtype by name, or any library's object for it.
StateDTypeLike: TypeAlias = StateDType | DType
#: Presets of DCT-AdamW.
PresetName: TypeAlias = Literal["factored", "tiny", "galore", "fira", "frugal", "ldadam", "paper"]
#: Presets of Trion.
TrionPresetName: TypeAlias = Literal["best"]
#: What frontends do about gradients that are not finite.
Nonfinite: TypeAlias = Literal["propagate", "skip", "raise"]


class SharedOptions(TypedDict, total=False):
    """Options that DCT-AdamW and Trion share, ``rank`` and ``state_dtype`` not counted."""

    basis: BasisName
    score: Score
    side: Side
    method: Method
    update_scale: Scalar


class OptionsOfDCTAdamW(TypedDict, total=False):
    """Options that DCT-AdamW alone has; see `lowrank_core.DCTAdamWConfig`."""

    refresh_every: int
    residual: Residual
    residual_scale: Scalar | None
    feedback_bits: Bits | None
    selection: Selection
    score_decay: Scalar | None
    hysteresis: Scalar
    bias_correction: BiasCorrection
    second_moment: SecondMoment
    moment_bits: MomentBits | None
    seed: int


class OptionsOfTrion(TypedDict, total=False):
    """Options that Trion alone has; see `lowrank_core.TrionConfig`."""

    steps: int
    coefficients: Coefficients
    scale: UpdateScale
    rank_scaling: bool
    row_decay: Scalar | None
    momentum_bits: Bits | None
