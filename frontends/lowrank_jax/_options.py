"""Options by name: those of a core configuration, refused where unknown."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from lowrank_core import DCTAdamWConfig, TrionConfig
from lowrank_core._checks import check_known, check_number
from lowrank_core.rules.options import number_options
from lowrank_core.rules.presets import config_from, with_preset
from lowrank_core.rules.rule import Rule

Config = TypeVar("Config", bound=Any)


# Numbers of this package's own signatures, which may be traced values like those of the core's configurations.
_OWN_NUMBERS = {"learning_rate", "weight_decay", "b1", "b2"}
#: Optax names the two decay rates one by one.
RENAMED = frozenset({"betas"})


def static_options(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Return the options of a function of this package that are structure, for `optax.inject_hyperparams`.

    That takes every integer for a hyperparameter to trace and every function for a schedule unless told otherwise::

        optax.inject_hyperparams(dct_adamw, static_args=static_options(dct_adamw))(
            learning_rate=1e-3, rank=128
        )
    """
    numbers = numbers_of_options()
    return tuple(name for name in inspect.signature(factory).parameters if name not in numbers)


def numbers_of_options() -> set[str]:
    """Return the options that are numbers, which may be traced values; everything else is structure."""
    return {*_OWN_NUMBERS, *number_options(DCTAdamWConfig), *number_options(TrionConfig)}


def config_of(
    where: str,
    rule: Rule,
    named: Mapping[str, Any],
    given: Mapping[str, Any],
    preset: str | None,
) -> Any:
    """Return the configuration of ``rule`` with ``named`` and with those ``given`` over those of ``preset``.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or has a bad value.
    """
    options = with_preset(preset, given, rule.presets)
    known = {field.name for field in dataclasses.fields(rule.config)} - RENAMED - set(named)
    check_known(where, options, known)
    for name, value in {**named, **options}.items():
        if name not in numbers_of_options() | RENAMED and isinstance(value, jax.Array):
            raise TypeError(
                f"{name} must be a plain value, got {value!r}; optax.inject_hyperparams makes an array of every number "
                f"unless told otherwise: static_args=lowrank_jax.static_options(factory)"
            )
    return config_from(rule, {**named, **options}, preset)


def check_adam(b1: Any, b2: Any, eps: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are decay rates in [0, 1) and a number of at least 0."""
    _check_scalar("b1", b1, high=1)
    _check_scalar("b2", b2, high=1)
    _check_scalar("eps", eps)


def check_rates(learning_rate: Any, weight_decay: Any, mask: Any) -> None:
    """Raise unless rates are numbers of at least 0 or schedules, and ``mask`` is what Optax takes for a mask.

    Raises
    ------
    TypeError
        If a rate is neither a number nor a function, or ``mask`` neither a tree of booleans nor a function.
    ValueError
        If a rate is negative or not finite, or an array with dimensions.
    """
    for name, rate in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not callable(rate):
            _check_scalar(name, rate)
    if mask is None or callable(mask):
        return
    for leaf in jax.tree.leaves(mask):
        if not (isinstance(leaf, bool) or getattr(leaf, "dtype", None) == jnp.bool_):
            raise TypeError(
                f"mask must be a tree of booleans or a function that returns one, got {leaf!r} in it"
            )


def _check_scalar(name: str, value: Any, *, high: float = float("inf")) -> None:
    """Raise unless ``value`` is a number in ``[0, high)``, in an array or not; a traced one is not read."""
    if getattr(value, "shape", ()) != ():
        raise ValueError(f"{name} must be a single number, got an array of shape {value.shape}")
    # NumPy's arrays are on the host; one of JAX may be traced, and to read another is to wait for the device.
    on_host = hasattr(value, "item") and not isinstance(value, jax.Array)
    plain = value.item() if on_host else value
    check_number(name, plain, low=0, high=high)


def with_numbers_in(config: Config, dtype: Any) -> Config:
    """Return ``config`` with those of its numbers that are arrays as ``dtype``, so that they promote nothing."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    cast = jax.tree.map(
        lambda value: value.astype(dtype) if isinstance(value, jax.Array) else value, values
    )
    return config if all(cast[name] is values[name] for name in values) else type(config)(**cast)
