"""The state of parameters as PyTorch keeps it: made, placed where the parameter is, and taken as the core's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lowrank_core.layout import with_side_of
from lowrank_core.rules.rule import Rule
from lowrank_torch._capturable import count_of
from lowrank_torch._plan import BoundMatrices, Member, Plan
from lowrank_torch._sharding import Sharding, is_sharded, local_of


def make_state(member: Member, plan: Plan, matrices: Sequence[BoundMatrices], rule: Rule) -> None:
    """Give a parameter the state before its first step."""
    parameter = member.parameter
    device = local_of(parameter).device
    entries: dict[str, Any] = {"step": count_of(0, member.group, device, full=False)}
    for bound, shape in zip(matrices, plan.shard_shapes, strict=True):
        fitted, number = bound.step.config, bound.number
        place = {"stream": (member.stream << 8) + number} if rule.uses_rng else {}
        options = {"xp": torch, "dtype": parameter.dtype, "device": device, **place}
        made = rule.init(shape, fitted, **options)
        if plan.sharding is not None and "key" in bound.fields:
            # Keys are numbered over all matrices of a stack, wherever they are.
            whole = plan.matrices[number]
            axis = fitted.layout(whole).axis
            empty = list(whole)
            empty[-3 - axis] = 0
            keys = rule.init(tuple(empty), with_side_of(fitted, axis), **options).key
            placements = bound.placements[bound.fields.index("key")]
            made = made._replace(key=local_of(placed(keys, plan.sharding, placements, "key")))
        entries |= entries_of(made, bound, plan.sharding)
    member.state.update(entries)


def place_state(state: dict[str, Any], plan: Plan, matrices: Sequence[BoundMatrices]) -> None:
    """Lay a matrix's loaded state out as its parameter is.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    for bound in matrices:
        for key, placements in zip(bound.keys, bound.placements, strict=True):
            state[key] = placed(state[key], plan.sharding, placements, key)


def entries_of(state: Any, bound: BoundMatrices, sharding: Sharding | None) -> dict[str, Any]:
    """Return the arrays of a state of the core, that of one stack of matrices, as entries of a parameter's state."""
    entries = {}
    kept = zip(bound.fields, bound.keys, bound.shapes, bound.placements, strict=True)
    for name, key, shape, placements in kept:
        value = getattr(state, name)
        if sharding is not None and placements is not None:
            value = as_state(value, shape, sharding, placements)
        entries[key] = value
    return entries


def state_of(entries: Mapping[str, Any], bound: BoundMatrices, rule: Rule) -> Any:
    """Return the core's state of one stack of matrices: this rank's part of it."""
    arrays = {}
    for name, key, placements in zip(bound.fields, bound.keys, bound.placements, strict=True):
        arrays[name] = entries[key] if placements is None else local_of(entries[key])
    return rule.state(entries["step"], **arrays)


def chooses_next(entries: Mapping[str, Any], matrices: Sequence[BoundMatrices], rule: Rule) -> bool:
    """Return whether the next step chooses columns for any matrix of a parameter; reads its state."""
    due = (rule.due(state_of(entries, bound, rule), bound.step) for bound in matrices)
    return any(one is True or bool(one.any()) for one in due)


def stacked(states: Sequence[Any], batch: Sequence[int]) -> Any:
    """Return states of stacks of matrices, each with leading dimensions ``batch``, as one state of them all."""
    first = states[0]
    if len(states) == 1:
        return first
    arrays = {}
    for name, parts in zip(first._fields, zip(*states, strict=True), strict=True):
        if name != "step" and parts[0] is not None:
            arrays[name] = torch.stack(parts)
    if "key" in arrays and not batch:
        # The key of one matrix has a dimension of its own.
        arrays["key"] = arrays["key"].view(-1)
    return first._replace(**arrays)


def unstacked(state: Any, states: Sequence[Any]) -> list[Any]:
    """Return the state of a stack as the states of its parts, shaped like ``states``, those before."""
    count = len(states)
    if count == 1:
        return [state]
    columns: list[Sequence[Any]] = []
    for name, value, before in zip(state._fields, state, states[0], strict=True):
        if name == "step" or value is None:
            columns.append([value] * count)
        else:
            columns.append(value.view(count, *before.shape).unbind())
    return list(map(type(state), *columns))


def as_state(local: Any, shape: Sequence[int], sharding: Sharding, placements: Any) -> Any:
    """Return what this rank has of an array of ``shape``, of which ranks have different parts, as it is kept."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        local, sharding.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def placed(value: Any, sharding: Sharding | None, placements: Any, name: str) -> Any:
    """Return an array of state that was loaded as it is kept; ``placements`` are ``None`` where ranks share it.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    if is_sharded(value):
        if (
            sharding is not None
            and placements is not None
            and value.device_mesh == sharding.mesh
            and value.placements == placements
        ):
            return value
        raise ValueError(
            f"{name} of the loaded state is sharded otherwise than its parameter; load it with "
            f"torch.distributed.checkpoint.state_dict, which shards it anew"
        )
    if sharding is None or placements is None:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * sharding.mesh.ndim
    whole = DTensor.from_local(value, sharding.mesh, everywhere, run_check=False)
    return whole.redistribute(placements=placements)
