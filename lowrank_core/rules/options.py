"""Which options of a rule may change while a run goes on: said once, on the fields of its configuration.

State depends on every other option, so that these are *structural*: fixed for a run, and compared when state is loaded.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from lowrank_core._checks import plain_number
from lowrank_core.ops.precision import dtype_name
from lowrank_core.option_types import Nonfinite

_NUMBER, _SPEED = "number", "speed"

#: Options that configurations have not always had, with what was done before: what was saved without them loads so.
LATER_OPTIONS: Mapping[str, Any] = {
    "update_scale": 1.0,
    "second_moment": "full",
    "moment_bits": None,
    "row_decay": None,
}

#: The value of an option that is what the preset says.
AS_PRESET = "preset"

#: What frontends do about gradients that are not finite: step on them, skip the step, or raise an error.
NONFINITE = get_args(Nonfinite)
F = TypeVar("F", bound=Callable[..., Any])


def number(default: Any) -> Any:
    """Return a field for a number that may change from step to step, or be a traced value."""
    return dataclasses.field(default=default, metadata={_NUMBER: True})


def speed_choice(default: Any) -> Any:
    """Return a field for a choice of speed alone, which changes rounding and never the mathematics."""
    return dataclasses.field(default=default, metadata={_SPEED: True})


def number_options(config_type: Any) -> tuple[str, ...]:
    """Return the options of a configuration that are numbers which may change from step to step."""
    return tuple(f.name for f in dataclasses.fields(config_type) if _NUMBER in f.metadata)


def structural_options(config_type: type[Any]) -> tuple[str, ...]:
    """Return the options of a configuration that its state depends on."""
    return tuple(
        f.name
        for f in dataclasses.fields(config_type)
        if _NUMBER not in f.metadata and _SPEED not in f.metadata
    )


def shows_options(
    *option_types: type[Any],
    renamed: frozenset[str] = frozenset(),
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Return a decorator that puts the fields of dataclasses in the place of ``**options`` in a signature, with types.

    So `help` lists them, and programs that read signatures know them: command lines, `optax.inject_hyperparams`.
    Fields that the function names itself are left as it has them, those in ``renamed`` left out. Such programs give
    every default as if it had been asked for: so what one of ``presets`` sets has `AS_PRESET` for a default.
    """
    preset = {name for options in presets.values() for name in options}

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        parameters = {
            name: parameter
            for name, parameter in signature.parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        for kind in option_types:
            types = get_type_hints(kind)
            for field in dataclasses.fields(kind):
                if field.name not in renamed:
                    default, annotation = field.default, types[field.name]
                    if field.name in preset:
                        default, annotation = AS_PRESET, annotation | Literal["preset"]
                    shown = inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=default,
                        annotation=annotation,
                    )
                    parameters.setdefault(field.name, shown)
        target: Any = function
        target.__signature__ = signature.replace(parameters=[*parameters.values()])
        return function

    return decorate


def plain_options(config: Any, *integers: str) -> None:
    """Give a frozen configuration that is being made Python's own values where equal ones of other kinds were given.

    NumPy's numbers become Python's, a pair of decay rates a tuple, a dtype its name: so options compare equal after a
    way through JSON or YAML, and are written to files.
    """
    plain: dict[str, Any] = {}
    # Of the object, not of its type: a graph compiler reads the fields of objects alone.
    for name in number_options(config):
        value = getattr(config, name)
        if isinstance(value, (tuple, list)):
            pair = (plain_number(f"{name}[{index}]", one) for index, one in enumerate(value))
            plain[name] = tuple(pair)
        else:
            plain[name] = plain_number(name, value)
    for name in integers:
        value = getattr(config, name)
        if not isinstance(value, bool) and isinstance(value, Integral):
            plain[name] = int(value)
    if config.state_dtype is not None:
        plain["state_dtype"] = dtype_name(config.state_dtype)
    for name, value in plain.items():
        object.__setattr__(config, name, value)
