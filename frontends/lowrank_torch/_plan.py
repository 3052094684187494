"""How one parameter is stepped: as which stacks of matrices, or by AdamW and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.layout import (
    is_low_rank,
    resolve_axis,
    resolve_rank,
    with_fitting_rank,
    with_side_of,
)
from lowrank_torch._matrices import matrix_shapes
from lowrank_torch._sharding import Spread, check_config, chunk, cut_dim, local_of, spread_of

Shapes = tuple[tuple[int, ...], ...]


class Plan(NamedTuple):
    """How a parameter is stepped; equal for parameters that can be stepped together."""

    #: Shapes of the stacks of matrices the parameter consists of; none where it gets AdamW.
    blocks: Shapes
    #: Why a parameter of a low-rank group gets AdamW; empty otherwise.
    reason: str = ""
    #: The shapes of what this rank has of each block.
    pieces: Shapes = ()
    #: The shapes of what this rank steps of each block.
    slabs: Shapes = ()
    #: How the parameter lies on ranks; ``None`` where each has and steps all of it.
    spread: Spread | None = None

    @property
    def full(self) -> bool:
        """Whether the parameter gets AdamW."""
        return not self.blocks

    def key(self, name: str, block: int) -> str:
        """Return the name of an entry of state, numbered where there are several blocks."""
        return name if len(self.blocks) == 1 else f"{name}.{block}"

    def fitted(self, config: Any, block: int) -> Any:
        """Return the configuration of a block: its rank fits, and its side is that of the whole matrices."""
        shape = self.blocks[block]
        if self.spread is not None and self.spread.summed:
            config = _on_side(config, shape, self.spread)
        return with_fitting_rank(config, shape)

    def state_shapes(self, shape: Sequence[int], config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shape of every entry of the state of a parameter of ``shape``, over all ranks."""
        shapes: dict[str, tuple[int, ...]] = {"step": ()}
        if self.full:
            return shapes | dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(shape))
        for block, matrices in enumerate(self.blocks):
            spec = self.fitted(config, block).state_spec(matrices)
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
    parameter: Any,
    group: Mapping[str, Any],
    config: Any,
    *,
    whole_ranks: bool,
    slab: Spread | None = None,
) -> Plan:
    """Return how a parameter in ``group`` is stepped.

    ``whole_ranks`` says that the rule also takes matrices with no more basis vectors than its rank. In ``slab`` is how
    parameters that every rank has are shared out.

    Raises
    ------
    NotImplementedError, ValueError
        If a sharded parameter cannot be stepped so.
    """
    shape, batch_dims = tuple(parameter.shape), group["batch_dims"]
    spread = slab if local_of(parameter) is parameter else None
    if group["algorithm"] == "adamw":
        return Plan((), spread=spread)
    single = len(shape) - batch_dims
    if single < 2:
        return Plan((), f"{max(0, single)}-dimensional, not a matrix", spread=spread)
    blocks = tuple(matrix_shapes(shape, group))
    if local_of(parameter) is not parameter:
        spread = spread_of(parameter, group)
    sides = [
        _on_side(config, b, spread).side if spread is not None and spread.summed else config.side
        for b in blocks
    ]
    if whole_ranks or any(
        is_low_rank(b, rank=config.rank, side=side) for b, side in zip(blocks, sides, strict=True)
    ):
        if spread is None:
            return Plan(blocks, "", blocks, blocks)
        check_config(spread, config, blocks)
        pieces = _pieces(parameter, group, blocks)
        plan = Plan(blocks, "", pieces, (), spread)
        return plan._replace(slabs=tuple(_slab(plan, config, b) for b in range(len(blocks))))
    size = blocks[0][resolve_axis(blocks[0], sides[0])]
    rank = resolve_rank(config.rank, size)
    # A DTensor gets AdamW as it lies.
    return Plan(
        (),
        f"rank {rank} is not below the transformed size {size}",
        spread=slab if local_of(parameter) is parameter else None,
    )


def _on_side(config: Any, shape: tuple[int, ...], spread: Spread) -> Any:
    """Return the configuration with the side stated that matrices of ``shape`` are transformed on."""
    axis = resolve_axis(shape, config.side) if spread.axis is None else spread.axis
    return with_side_of(config, axis)


def _pieces(parameter: Any, group: Mapping[str, Any], blocks: Shapes) -> Shapes:
    local, batch_dims = tuple(local_of(parameter).shape), group["batch_dims"]
    first = batch_dims + (1 if group["transposed"] else 0)
    rows = any(cut_dim(p) == first for p in getattr(parameter, "placements", ()))
    if not rows or len(blocks[0]) == batch_dims + 2:
        return tuple(matrix_shapes(local, group))
    # Whole heads.
    height = blocks[0][-2]
    numbers, columns = math.prod(local[batch_dims:]), blocks[0][-1]
    return ((*local[:batch_dims], numbers // (height * columns), height, columns),)


def _slab(plan: Plan, config: Any, block: int) -> tuple[int, ...]:
    """Return the shape of what this rank steps of a block."""
    spread, piece = plan.spread, plan.pieces[block]
    assert spread is not None  # noqa: S101 - the caller has seen to it; this tells the type checker
    axis = plan.fitted(config, block).layout(plan.blocks[block]).axis
    across = -3 - axis
    slab = list(piece)
    if spread.replicated or spread.swapped is not None:
        dim = spread.summed[0] if spread.swapped is None else spread.swapped
        mesh = spread.mesh
        slab[axis] = plan.blocks[block][axis]
        slab[across] = chunk(piece[across], mesh.size(dim), mesh.get_local_rank(dim))[1]
    return tuple(slab)
