"""The state of parameters as PyTorch keeps it: made, placed where the parameter is, and taken as the core's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lowrank_core.layout import with_side_of
from lowrank_core.rules.rule import Rule
from lowrank_torch._plan import Member, Plan
from lowrank_torch._sharding import Sharding, is_sharded, local_of


def make_state(member: Member, plan: Plan, rule: Rule, config: Any, batch_dims: int) -> None:
    """Give a parameter the state before its first step."""
    parameter = member.parameter
    entries: dict[str, Any] = {}
    for number, shape in enumerate(plan.shard_shapes):
        fitted = plan.fitted(config, number)
        place = {"stream": (member.stream << 8) + number} if rule.uses_rng else {}
        device = local_of(parameter).device
        options = {"xp": torch, "dtype": parameter.dtype, "device": device, **place}
        made = rule.init(shape, fitted, **options)
        if getattr(made, "key", None) is not None and plan.sharding is not None:
            # Keys are numbered over all matrices of a stack, wherever they are.
            whole = plan.matrices[number]
            axis = fitted.layout(whole).axis
            empty = list(whole)
            empty[-3 - axis] = 0
            keys = rule.init(tuple(empty), with_side_of(fitted, axis), **options).key
            placements = _placements(plan, fitted, number, keys.shape, batch_dims)
            made = made._replace(key=local_of(placed(keys, plan.sharding, placements, "key")))
        entries |= {"step": made.step} | entries_of(made, plan, number, fitted, batch_dims)
    member.state.update(entries)


def place_state(state: dict[str, Any], plan: Plan, config: Any, batch_dims: int) -> None:
    """Lay a matrix's loaded state out as its parameter is.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    for number, shape in enumerate(plan.matrices):
        fitted = plan.fitted(config, number)
        for name in fitted.state_spec(shape):
            key = plan.key(name, number)
            placements = _placements(plan, fitted, number, state[key].shape, batch_dims)
            state[key] = placed(state[key], plan.sharding, placements, key)


def entries_of(state: Any, plan: Plan, number: int, fitted: Any, batch_dims: int) -> dict[str, Any]:
    """Return the arrays of a state of the core, that of stack ``number``, as entries of a parameter's state."""
    arrays = {name: value for name, value in state._asdict().items() if value is not None}
    del arrays["step"]
    if plan.sharding is not None:
        spec = fitted.state_spec(plan.matrices[number])
        for name, value in arrays.items():
            placements = _placements(plan, fitted, number, spec[name].shape, batch_dims)
            arrays[name] = as_state(value, spec[name].shape, plan.sharding, placements)
    return {plan.key(name, number): value for name, value in arrays.items()}


def state_of(entries: Mapping[str, Any], plan: Plan, number: int, rule: Rule) -> Any:
    """Return the core's state of stack ``number`` of a parameter."""
    fields = rule.state._fields
    own = {name: local_of(entries.get(plan.key(name, number))) for name in fields[1:]}
    return rule.state(entries["step"], **own)


def stacked(states: Sequence[Any], batch: Sequence[int]) -> Any:
    """Return states of stacks of matrices, each with leading dimensions ``batch``, as one state of them all."""
    first = states[0]
    if len(states) == 1:
        return first
    arrays = {
        name: torch.stack([getattr(state, name) for state in states])
        for name, value in first._asdict().items()
        if value is not None and name != "step"
    }
    if "key" in arrays and not batch:
        # The key of one matrix has a dimension of its own.
        arrays["key"] = arrays["key"].view(-1)
    return first._replace(**arrays)


def unstacked(state: Any, states: Sequence[Any]) -> list[Any]:
    """Return the state of a stack as the states of its parts, shaped like ``states``, those before."""
    if len(states) == 1:
        return [state]
    parts = {
        name: value.view(len(states), *getattr(states[0], name).shape).unbind()
        for name, value in state._asdict().items()
        if value is not None and name != "step"
    }
    return [
        state._replace(**{name: values[index] for name, values in parts.items()})
        for index in range(len(states))
    ]


def _placements(plan: Plan, fitted: Any, number: int, shape: Sequence[int], batch_dims: int) -> Any:
    """Return the placements of an array of ``shape`` of the state of stack ``number``."""
    if plan.sharding is None:
        return ()
    whole = plan.matrices[number]
    return plan.sharding.placements_of(shape, whole, fitted.layout(whole).axis, batch_dims)


def as_state(local: Any, shape: Sequence[int], sharding: Sharding | None, placements: Any) -> Any:
    """Return what this rank has of an array of ``shape`` as it is kept: a DTensor where ranks have different parts."""
    if sharding is None or all(p.is_replicate() for p in placements):
        return local
    from torch.distributed.tensor import DTensor

    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        local, sharding.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def placed(value: Any, sharding: Sharding | None, placements: Any, name: str) -> Any:
    """Return an array of state that was loaded as it is kept.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    kept_whole = all(p.is_replicate() for p in placements)
    if is_sharded(value):
        if (
            sharding is not None
            and not kept_whole
            and value.device_mesh == sharding.mesh
            and value.placements == placements
        ):
            return value
        raise ValueError(
            f"{name} of the loaded state is sharded otherwise than its parameter; load it with "
            f"torch.distributed.checkpoint.state_dict, which shards it anew"
        )
    if sharding is None or kept_whole:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * sharding.mesh.ndim
    whole = DTensor.from_local(value, sharding.mesh, everywhere, run_check=False)
    return whole.redistribute(placements=placements)
