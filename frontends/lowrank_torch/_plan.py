"""How one parameter is stepped: as which stacks of matrices, or by AdamW and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.layout import is_low_rank, resolve_axis, resolve_rank, with_fitting_rank
from lowrank_torch._matrices import matrix_shapes


class Plan(NamedTuple):
    """How a parameter is stepped; equal for parameters that can be stepped together."""

    #: Shapes of the stacks of matrices the parameter consists of; none where it gets AdamW.
    blocks: tuple[tuple[int, ...], ...]
    #: Why a parameter of a low-rank group gets AdamW; empty otherwise.
    reason: str = ""

    @property
    def full(self) -> bool:
        """Whether the parameter gets AdamW."""
        return not self.blocks

    def key(self, name: str, block: int) -> str:
        """Return the name of an entry of state, numbered where there are several blocks."""
        return name if len(self.blocks) == 1 else f"{name}.{block}"

    def state_shapes(self, shape: Sequence[int], config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shape of every entry of the state of a parameter of ``shape``."""
        shapes: dict[str, tuple[int, ...]] = {"step": ()}
        if self.full:
            return shapes | dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(shape))
        for block, matrices in enumerate(self.blocks):
            spec = with_fitting_rank(config, matrices).state_spec(matrices)
            shapes |= {self.key(name, block): spec[name].shape for name in spec}
        return shapes


class Member(NamedTuple):
    """One parameter to be stepped."""

    parameter: Tensor
    #: Its entry in the optimizer's state.
    state: dict[str, Any]
    #: Its number among the parameters of the optimizer, of which its random numbers are a function.
    stream: int
    #: Coefficients of the gradient of each block on the current columns, where the gradient itself was not kept.
    projected: Sequence[Tensor] | None = None

    @property
    def gradient_dtype(self) -> torch.dtype:
        """The dtype of what the step is given."""
        gradient: Any = self.parameter.grad if self.projected is None else self.projected[0]
        dtype: torch.dtype = gradient.dtype
        return dtype


def plan_for(
    shape: Sequence[int], group: Mapping[str, Any], config: Any, *, whole_ranks: bool
) -> Plan:
    """Return how a parameter of ``shape`` in ``group`` is stepped.

    ``whole_ranks`` says that the rule also takes matrices with no more basis vectors than its rank.
    """
    if group["algorithm"] == "adamw":
        return Plan(())
    single = len(shape) - group["batch_dims"]
    if single < 2:
        return Plan((), f"{max(0, single)}-dimensional, not a matrix")
    blocks = tuple(matrix_shapes(shape, group))
    if whole_ranks or any(is_low_rank(b, rank=config.rank, side=config.side) for b in blocks):
        return Plan(blocks)
    size = blocks[0][resolve_axis(blocks[0], config.side)]
    rank = resolve_rank(config.rank, size)
    return Plan((), f"rank {rank} is not below the transformed size {size}")
