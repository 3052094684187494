"""How one parameter is stepped: as which stacks of matrices, or by AdamW and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.layout import (
    Layout,
    is_low_rank,
    resolve_axis,
    resolve_rank,
    with_fitting_rank,
    with_side_of,
)
from lowrank_core.ops.precision import compute_dtype_name
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.laws import NON_NEGATIVE
from lowrank_core.rules.rule import MatrixStep, bind
from lowrank_core.rules.state import ArraySpec
from lowrank_torch._index import stream_of
from lowrank_torch._matrices import matrix_shapes
from lowrank_torch._sharding import (
    Sharding,
    check_config,
    chunk,
    cut_dim,
    is_sharded,
    local_of,
    sharding_of,
)

Shapes = tuple[tuple[int, ...], ...]
#: Where a parameter is: the place of its group, and its place in the group.
Place = tuple[int, int]


class Plan(NamedTuple):
    """How a parameter is stepped; equal for parameters that can be stepped together."""

    #: Shapes of the stacks of matrices the parameter consists of; none where it gets AdamW.
    matrices: Shapes
    #: Why a parameter of a low-rank group gets AdamW; empty otherwise.
    reason: str = ""
    #: The shapes of what this rank has of each.
    local_shapes: Shapes = ()
    #: The shapes of what this rank steps of each.
    shard_shapes: Shapes = ()
    #: How the parameter lies on ranks; ``None`` where each has and steps all of it.
    sharding: Sharding | None = None
    #: The number of its leading dimensions that stack matrices.
    batch_dims: int = 0
    #: Whether its matrices are kept as (in, out).
    transposed: bool = False

    @property
    def uses_adamw(self) -> bool:
        """Whether the parameter gets AdamW."""
        return not self.matrices

    @property
    def reduces(self) -> bool:
        """Whether a step's sums are over several ranks."""
        return self.sharding is not None and bool(self.sharding.reduce_dims)

    def key(self, name: str, number: int) -> str:
        """Return what an array of the state of stack ``number`` is called, numbered where there are several."""
        return name if len(self.matrices) == 1 else f"{name}.{number}"

    def fitted(self, config: Any, number: int) -> Any:
        """Return the configuration of stack ``number``: its rank fits, and its side is that of the whole matrices."""
        shape = self.matrices[number]
        if self.sharding is not None and self.sharding.reduce_dims:
            config = _on_side(config, shape, self.sharding)
        return with_fitting_rank(config, shape)

    def bind(self, config: Any, ops: Ops, device: torch.device) -> tuple[BoundMatrices, ...]:
        """Return what the steps of each stack of matrices are bound to, on a device."""
        bound = []
        for number, shape in enumerate(self.matrices):
            fitted = self.fitted(config, number)
            step = bind(fitted, shape, ops, device, in_parts=self.reduces)
            spec = fitted.state_spec(shape)
            keys = tuple(self.key(name, number) for name in spec)
            shapes = tuple(array.shape for array in spec.values())
            placements = tuple(self.placements(array, number, step.layout) for array in shapes)
            bound.append(BoundMatrices(number, step, tuple(spec), keys, shapes, placements))
        return tuple(bound)

    def placements(self, shape: Sequence[int], number: int, layout: Layout) -> Any:
        """Return the placements of an array of ``shape`` of the state of a stack; ``None`` where ranks share it."""
        if self.sharding is None:
            return None
        whole, batch_dims = self.matrices[number], self.batch_dims
        placements = self.sharding.placements_of(shape, whole, layout.axis, batch_dims)
        return None if all(p.is_replicate() for p in placements) else placements

    def state_specs(self, parameter: Tensor, config: Any) -> dict[str, ArraySpec]:
        """Return shape, dtype and law of every entry of the state of a parameter, over all ranks."""
        dtype, shape = compute_dtype_name(parameter.dtype), tuple(parameter.shape)
        specs = {"step": ArraySpec((), "int32", NON_NEGATIVE)}
        if self.uses_adamw:
            specs["exp_avg"] = ArraySpec(shape, dtype)
            specs["exp_avg_sq"] = ArraySpec(shape, dtype, NON_NEGATIVE)
        for number, matrices in enumerate(self.matrices):
            own = self.fitted(config, number).state_spec(matrices, dtype)
            specs |= {self.key(name, number): own[name] for name in own}
        return specs


class BoundMatrices(NamedTuple):
    """One stack of matrices of a parameter, and what its steps are bound to."""

    #: Its number among those of the parameter.
    number: int
    step: MatrixStep[Any]
    #: The arrays of its state, by their names in the core.
    fields: tuple[str, ...]
    #: What these are called among the entries of the parameter's state.
    keys: tuple[str, ...]
    #: Their shapes, over all ranks.
    shapes: Shapes
    #: How each lies on ranks; ``None`` for one that every rank has all of.
    placements: tuple[Any, ...]


class Member(NamedTuple):
    """One parameter to be stepped."""

    parameter: Tensor
    #: Its entry in the optimizer's state.
    state: dict[str, Any]
    #: Its group.
    group: Mapping[str, Any]
    #: Where it is.
    place: Place
    #: Coefficients on the current columns of the gradient of each stack of matrices, where they were kept in its place.
    projected: Sequence[Tensor] | None = None

    @property
    def stream(self) -> int:
        """The number of its stream of random numbers."""
        return stream_of(self.group, *self.place)


def plan_for(
    parameter: Any,
    group: Mapping[str, Any],
    config: Any,
    *,
    whole_ranks: bool,
    replicas: Sharding | None = None,
) -> Plan:
    """Return how a parameter in ``group`` is stepped.

    ``whole_ranks`` says that the rule also takes matrices with no more basis vectors than its rank. In ``replicas`` is
    how parameters that every rank has are shared out.

    Raises
    ------
    NotImplementedError, ValueError
        If a sharded parameter cannot be stepped so.
    """
    shape, batch_dims = tuple(parameter.shape), group["batch_dims"]
    # A DTensor that gets AdamW gets it as it lies.
    unsharded = None if is_sharded(parameter) else replicas
    if group["algorithm"] == "adamw":
        return Plan((), sharding=unsharded)
    single = len(shape) - batch_dims
    if single < 2:
        return Plan((), f"{max(0, single)}-dimensional, not a matrix", sharding=unsharded)
    matrices = tuple(matrix_shapes(shape, group))
    sharding = sharding_of(parameter, group) if is_sharded(parameter) else replicas
    reduces = sharding is not None and bool(sharding.reduce_dims)
    sides = [
        _on_side(config, m, sharding).side if reduces and sharding is not None else config.side
        for m in matrices
    ]
    if whole_ranks and 0 in shape:
        return Plan((), f"no numbers in shape {shape}", sharding=unsharded)
    if not whole_ranks and not any(
        is_low_rank(m, rank=config.rank, side=side) for m, side in zip(matrices, sides, strict=True)
    ):
        size = matrices[0][resolve_axis(matrices[0], sides[0])]
        rank = resolve_rank(config.rank, size)
        reason = f"rank {rank} is not below the transformed size {size}"
        return Plan((), reason, sharding=unsharded)
    if sharding is None:
        return Plan(matrices, "", matrices, matrices, None, batch_dims, group["transposed"])
    check_config(sharding, config, matrices)
    plan = Plan(matrices, "", _local_shapes(parameter, group, matrices), (), sharding)
    shards = tuple(_shard_shape(plan, sharding, config, n) for n in range(len(matrices)))
    return plan._replace(shard_shapes=shards, batch_dims=batch_dims, transposed=group["transposed"])


def _on_side(config: Any, shape: tuple[int, ...], sharding: Sharding) -> Any:
    """Return the configuration with the side stated that matrices of ``shape`` are transformed on."""
    axis = resolve_axis(shape, config.side) if sharding.axis is None else sharding.axis
    return with_side_of(config, axis)


def _local_shapes(parameter: Any, group: Mapping[str, Any], matrices: Shapes) -> Shapes:
    local, batch_dims = tuple(local_of(parameter).shape), group["batch_dims"]
    first = batch_dims + (1 if group["transposed"] else 0)
    rows = any(cut_dim(p) == first for p in getattr(parameter, "placements", ()))
    if not rows or len(matrices[0]) == batch_dims + 2:
        return tuple(matrix_shapes(local, group))
    # Whole heads.
    height = matrices[0][-2]
    numbers, columns = math.prod(local[batch_dims:]), matrices[0][-1]
    return ((*local[:batch_dims], numbers // (height * columns), height, columns),)


def _shard_shape(plan: Plan, sharding: Sharding, config: Any, number: int) -> tuple[int, ...]:
    """Return the shape of what this rank steps of stack ``number``."""
    whole, local = plan.matrices[number], plan.local_shapes[number]
    axis = plan.fitted(config, number).layout(whole).axis
    shard = list(local)
    if sharding.replicated or sharding.all_to_all_dim is not None:
        dim = sharding.all_to_all_dim
        if dim is None:
            dim = sharding.reduce_dims[0]
        mesh, rows = sharding.mesh, -3 - axis
        shard[axis] = whole[axis]
        shard[rows] = chunk(local[rows], mesh.size(dim), mesh.get_local_rank(dim))[1]
    return tuple(shard)
