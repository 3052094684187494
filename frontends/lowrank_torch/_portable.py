"""The state of an optimizer in one file, to go on from in another framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from lowrank_core._files import needing_safetensors
from lowrank_core.rules.portable import (
    Names,
    Saved,
    Stepped,
    file_names,
    read,
    stepped_by_adamw,
    stepped_by_rule,
    write,
)
from lowrank_core.rules.rule import Rule
from lowrank_core.rules.state import ArraySpec
from lowrank_torch._capturable import count_of
from lowrank_torch._matrices import matrix_shapes
from lowrank_torch._names import parameter_name

# What PyTorch calls the moments of AdamW, by their names in a file.
_ADAMW = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}


class Stateful(Protocol):
    """What is asked of an optimizer here."""

    param_groups: list[dict[str, Any]]
    state: Any
    rule: ClassVar[Rule]

    def check_options(self, group: Mapping[str, Any]) -> Any:
        """Return the configuration of a group, every option checked."""

    def state_specs(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, ArraySpec]:
        """Return shape, dtype and law of every entry of a parameter's state."""


class _Row(NamedTuple):
    """One parameter of an optimizer."""

    parameter: Tensor
    stepped: Stepped
    group: Mapping[str, Any]

    @property
    def full(self) -> bool:
        """Whether AdamW steps it."""
        return self.stepped.rule["algorithm"] == "adamw"


def save_state(optimizer: Stateful, path: str | os.PathLike[str], names: Names = None) -> None:
    """Write the state of ``optimizer`` to ``path``; see `LowRankOptimizer.save_state`."""
    with needing_safetensors():
        from safetensors.torch import save_file
    write(
        path,
        [
            (row.stepped, _saved(optimizer.state.get(row.parameter), row))
            for row in _rows(optimizer, names)
        ],
        save_file,
    )


def load_state(optimizer: Stateful, path: str | os.PathLike[str], names: Names = None) -> int:
    """Go on from the state in ``path``; see `LowRankOptimizer.load_state`."""
    with needing_safetensors():
        import safetensors.torch
    rows = _rows(optimizer, names)
    saved = read(path, [row.stepped for row in rows], safetensors, "pt")
    # Every array has been read and copied before the first one is put in its place.
    made = [(row.parameter, _entries(saved[row.stepped.name], row)) for row in rows]
    for parameter, entries in made:
        optimizer.state.pop(parameter, None)
        if entries:
            optimizer.state[parameter] = entries
    return max((one.step for one in saved.values()), default=0)


def _rows(optimizer: Stateful, names: Names) -> list[_Row]:
    """Return every parameter and how it is stepped."""
    found: list[tuple[str, Tensor, Mapping[str, Any]]] = [
        (parameter_name(group, place, index), parameter, group)
        for place, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
    ]
    called = file_names([own for own, *_ in found], names)
    rows = []
    for name, (own, parameter, group) in zip(called, found, strict=True):
        if hasattr(parameter, "placements"):
            raise NotImplementedError(
                f"save_state and load_state need parameters that are whole, got a DTensor for {own}; "
                "torch.distributed.checkpoint saves sharded state"
            )
        dtype = "float64" if parameter.dtype == torch.float64 else "float32"
        if "exp_avg" in optimizer.state_specs(parameter, group):
            stepped = stepped_by_adamw(name, parameter.shape, dtype)
        else:
            config = optimizer.check_options(group)
            shapes = matrix_shapes(parameter.shape, group)
            stepped = stepped_by_rule(name, optimizer.rule, config, shapes, dtype)
        rows.append(_Row(parameter, stepped, group))
    return rows


def _saved(state: Mapping[str, Any] | None, row: _Row) -> Saved:
    """Return a parameter's state as it is in a file."""
    if not state:
        return Saved(0, {})
    step = int(state["step"])
    if row.full:
        shape = row.stepped.shapes[0]
        moments = {name: state[own].reshape(shape) for name, own in _ADAMW.items()}
        return Saved(step, {name: moment.contiguous() for name, moment in moments.items()})
    arrays = {name: value.contiguous() for name, value in state.items() if name != "step"}
    return Saved(step, arrays)


def _entries(saved: Saved, row: _Row) -> dict[str, Any]:
    """Return what a file says of a parameter as PyTorch's state of it."""
    if not saved.arrays:
        return {}
    parameter = row.parameter.detach()
    device = parameter.device
    entries: dict[str, Any] = {"step": count_of(saved.step, row.group, device, full=row.full)}
    if not row.full:
        arrays = {name: array.to(device, copy=True) for name, array in saved.arrays.items()}
        return entries | arrays
    for name, own in _ADAMW.items():
        array = saved.arrays[name]
        # In the parameter's own order in memory.
        moment = torch.empty_like(parameter, dtype=array.dtype)
        entries[own] = moment.copy_(array.view(parameter.shape))
    return entries
