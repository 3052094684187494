"""The options of the Optax transformations as types, for editors and type checkers."""

from __future__ import annotations

from typing import Any, TypedDict

import jax.numpy as jnp

from lowrank_core.option_types import (
    OptionsOfDCTAdamW,
    OptionsOfTrion,
    SharedOptions,
    StateDType,
)


class FrontendOptions(TypedDict, total=False):
    """What is a type of JAX's own."""

    state_dtype: StateDType | jnp.dtype | type[Any] | None


class DCTAdamWOptions(SharedOptions, OptionsOfDCTAdamW, FrontendOptions, total=False):
    """What `dct_adamw` and `scale_by_dct_adam` take as ``**options``."""


class TrionOptions(SharedOptions, OptionsOfTrion, FrontendOptions, total=False):
    """What `trion` and `scale_by_trion` take as ``**options``."""
