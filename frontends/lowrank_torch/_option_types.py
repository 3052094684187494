"""The options of the PyTorch optimizers as types, for editors and type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor

from lowrank_core.option_types import (
    Nonfinite,
    OptionsOfDCTAdamW,
    OptionsOfTrion,
    PresetName,
    SharedOptions,
    StateDType,
    TrionPresetName,
)

Rate: TypeAlias = float | Tensor
#: What a parameter can be taken for.
Role: TypeAlias = Literal["matrix", "table", "vector"]


class FrontendOptions(TypedDict, total=False):
    """Options that both optimizers have beside those of their rule."""

    state_dtype: StateDType | torch.dtype | None
    maximize: bool
    stochastic_rounding: bool
    foreach: bool
    capturable: bool
    nonfinite: Nonfinite
    batch_dims: int
    transposed: bool
    split_sizes: Sequence[int] | None
    num_heads: int | Sequence[int] | None


class DCTAdamWOptions(SharedOptions, OptionsOfDCTAdamW, FrontendOptions, total=False):
    """What `DCTAdamW` takes as ``**options``."""


class TrionOptions(SharedOptions, OptionsOfTrion, FrontendOptions, total=False):
    """What `Trion` takes as ``**options``."""


class NamedOptions(TypedDict, total=False):
    """Options of both optimizers that their constructors name."""

    lr: Rate
    weight_decay: Rate
    betas: tuple[Rate, Rate]
    eps: Rate
    rank: int | float


class OptionsOfGroup(
    NamedOptions, SharedOptions, OptionsOfDCTAdamW, OptionsOfTrion, FrontendOptions, total=False
):
    """Every option that a parameter group may have, under either optimizer."""

    algorithm: Literal["dct_adamw", "trion", "adamw"]
    momentum: Rate


class GroupingOptions(TypedDict, total=False):
    """What `matrix_groups` takes beside the model."""

    overrides: Mapping[str, Role] | None
    options: Mapping[str, OptionsOfGroup] | None
    matrix: OptionsOfGroup | None
    other: OptionsOfGroup | None
    min_size: int


class DCTAdamWSettings(NamedOptions, DCTAdamWOptions, GroupingOptions, total=False):
    """What `DCTAdamW.for_model` takes beside the model."""

    algorithm: Literal["dct_adamw", "adamw"]
    preset: PresetName | None
    process_group: Any


class TrionSettings(NamedOptions, TrionOptions, GroupingOptions, total=False):
    """What `Trion.for_model` takes beside the model."""

    algorithm: Literal["trion", "adamw"]
    momentum: Rate
    preset: TrionPresetName | None
    process_group: Any
