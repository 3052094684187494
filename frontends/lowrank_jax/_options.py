"""Options by name: those of a core configuration, shown in a signature and refused where unknown."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from lowrank_core import DCTAdamWConfig, TrionConfig
from lowrank_core._checks import check_known
from lowrank_core.rules.options import number_options

F = TypeVar("F", bound=Callable[..., Any])
Config = TypeVar("Config", bound=Any)

# Numbers of this package's own signatures, which may be traced values like those of the core's configurations.
_OWN_NUMBERS = {"learning_rate", "weight_decay", "b1", "b2"}
# Optax names the two decay rates one by one.
_RENAMED = {"betas"}


def shows_options(config_type: type[Any]) -> Callable[[F], F]:
    """Return a decorator that puts the fields of ``config_type`` in the place of ``**options`` in a signature.

    So `help` lists them, and `optax.inject_hyperparams`, which reads signatures, can inject each.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {parameter.name for parameter in named} | _RENAMED
        fields = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
            for field in dataclasses.fields(config_type)
            if field.name not in taken
        ]
        target: Any = function
        target.__signature__ = signature.replace(parameters=[*named, *fields])
        return function

    return decorate


def static_options(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Return the options of a function of this package that are structure, for `optax.inject_hyperparams`.

    That takes every integer for a hyperparameter to trace and every function for a schedule unless told otherwise::

        optax.inject_hyperparams(dct_adamw, static_args=static_options(dct_adamw))(
            learning_rate=1e-3, rank=128
        )
    """
    numbers = {*_OWN_NUMBERS, *number_options(DCTAdamWConfig), *number_options(TrionConfig)}
    return tuple(name for name in inspect.signature(factory).parameters if name not in numbers)


def config_of(
    where: str, config_type: type[Config], named: Mapping[str, Any], options: Mapping[str, Any]
) -> Config:
    """Return the configuration with ``named`` and ``options``.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or has a bad value.
    """
    known = {field.name for field in dataclasses.fields(config_type)} - _RENAMED - set(named)
    check_known(where, options, known)
    return config_type(**named, **options)


def with_numbers_in(config: Config, dtype: Any) -> Config:
    """Return ``config`` with those of its numbers that are arrays as ``dtype``, so that they promote nothing."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    cast = jax.tree.map(
        lambda value: value.astype(dtype) if isinstance(value, jax.Array) else value, values
    )
    return config if all(cast[name] is values[name] for name in values) else type(config)(**cast)
