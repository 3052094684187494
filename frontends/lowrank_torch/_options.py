"""The options of parameter groups: what they are, whether they are right, and the core's configuration they give."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from lowrank_core._checks import check_betas, check_choice, check_number
from lowrank_core.ops.precision import dtype_name
from lowrank_core.option_types import Nonfinite
from lowrank_core.rules import options
from lowrank_core.rules.options import NONFINITE, number_options, structural_options
from lowrank_core.rules.presets import config_from
from lowrank_core.rules.rule import Rule
from lowrank_torch._capturable import check_group
from lowrank_torch._input import check_lr, plain_number
from lowrank_torch._matrices import SHAPE_OPTIONS, check_shape_options

#: Keys of a group that are no options: what PyTorch and its schedulers keep there.
BOOKKEEPING = {"params", "param_names", "name", "initial_lr"}

#: Options that groups have not always had, with what they did before: state dicts that lack them are loaded so.
LATER_OPTIONS: Mapping[str, Any] = {
    "transposed": SHAPE_OPTIONS["transposed"],
    "nonfinite": "propagate",
    "capturable": False,
    **options.LATER_OPTIONS,
}


def canonical(value: Any) -> Any:
    """Return an option in the form that equal ones share: YAML and JSON make lists of tuples, a dtype may be an object.

    The value itself where it has but one form.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(canonical(entry) for entry in value)
    return dtype_name(value) if isinstance(value, torch.dtype) else value


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of a group that say how its parameters are written to."""

    maximize: bool = False
    stochastic_rounding: bool = False
    foreach: bool = True
    capturable: bool = False
    nonfinite: Nonfinite = "propagate"


class GroupOptions:
    """The options that groups of one optimizer have."""

    def __init__(self, rule: Rule, preset: str | None = None) -> None:
        self.rule, self._preset = rule, preset
        self._fields = dataclasses.fields(rule.config)
        self._names = tuple(field.name for field in self._fields)
        # What a configuration is made of and checked for: all but the numbers that schedules change.
        self._watched = tuple(dict.fromkeys((*self.defaults(), "betas", "eps")))
        #: The options that a state is made for, as opposed to numbers that may change in a run.
        self.structural = ("algorithm", *SHAPE_OPTIONS, *structural_options(rule.config))
        self._numbers = ("lr", "weight_decay", "betas", "eps", *number_options(rule.config))
        # The last configuration of each group, between the values it was made of and the numbers that are none of it.
        self._known: dict[int, tuple[tuple[Any, ...], Any, Any, Any]] = {}

    def defaults(self) -> dict[str, Any]:
        """Return the options that both algorithms have, with their defaults."""
        defaults = {field.name: field.default for field in self._fields}
        defaults |= {"algorithm": self.rule.name, **SHAPE_OPTIONS}
        return defaults | dataclasses.asdict(StepOptions())

    def check(self, group: Mapping[str, Any]) -> Any:
        """Return the core's configuration of a group, every option checked."""
        group = dict(group)
        self.make_plain(group)
        check_choice("algorithm", group["algorithm"], (self.rule.name, "adamw"))
        check_choice("maximize", group["maximize"], (False, True))
        check_choice("stochastic_rounding", group["stochastic_rounding"], (False, True))
        check_choice("foreach", group["foreach"], (False, True))
        check_choice("nonfinite", group["nonfinite"], NONFINITE)
        check_choice("capturable", group["capturable"], (False, True))
        check_group(group)
        check_shape_options(group)
        self._check_numbers(group)
        check_number("eps", group["eps"], low=0)
        check_betas(group["betas"])
        options = {name: group[name] for name in self._names}
        return config_from(self.rule, options, self._preset)

    def make_plain(self, group: MutableMapping[str, Any]) -> None:
        """Give a group Python's own numbers in the place of others, and a dtype's name in that of its object."""
        if torch.compiler.is_compiling():
            return  # what a graph follows is a number of its own
        for name in self._numbers:
            value = group.get(name)
            if isinstance(value, (tuple, list)):
                plain = tuple(plain_number(f"{name}[{i}]", one) for i, one in enumerate(value))
                if any(map(operator.is_not, plain, value)):
                    group[name] = plain
            elif (plain := plain_number(name, value)) is not value:
                group[name] = plain
        if isinstance(group.get("state_dtype"), torch.dtype):
            group["state_dtype"] = dtype_name(group["state_dtype"])

    def config_of(self, group: MutableMapping[str, Any]) -> Any:
        """Return what `check` does; of a group whose options are the same objects as before, what it returned then.

        The numbers that schedules change are checked at every step.
        """
        values = tuple(map(group.__getitem__, self._watched))
        lr, weight_decay = group["lr"], group["weight_decay"]
        known = self._known.get(id(group))
        if known is None or not all(map(operator.is_, known[0], values)):
            self.make_plain(group)
            values = tuple(map(group.__getitem__, self._watched))
            config = self.check(group)
        else:
            config = known[1]
            # Of what are the same numbers there is nothing new to check; a tensor may hold another.
            if lr is known[2] and type(lr) is float and weight_decay is known[3]:
                return config
            if torch.compiler.is_compiling():
                # A graph cannot check a number that it follows, and would be compiled anew for each that is remembered.
                return config
            self.make_plain(group)
            self._check_numbers(group)
        self._known[id(group)] = values, config, group["lr"], group["weight_decay"]
        return config

    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values of the structural options of a group."""
        return tuple(group[option] for option in self.structural)

    @staticmethod
    def _check_numbers(group: Mapping[str, Any]) -> None:
        check_lr(group["lr"])
        check_number("weight_decay", group["weight_decay"], low=0)
