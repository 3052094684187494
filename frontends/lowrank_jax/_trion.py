"""Trion as Optax transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import optax

from lowrank_core import TrionConfig
from lowrank_core._typing import Scalar
from lowrank_core.option_types import Nonfinite, TrionPresetName
from lowrank_core.rules.known import TRION
from lowrank_core.rules.options import shows_options
from lowrank_core.rules.presets import TRION_PRESETS
from lowrank_jax._axes import AxesRule, axes_by_name
from lowrank_jax._nonfinite import watched
from lowrank_jax._option_types import TrionOptions
from lowrank_jax._options import RENAMED, check_adam, check_rates, config_of
from lowrank_jax._precision import in_wide_precision
from lowrank_jax._scale import Options, scale_by_rule


@shows_options(TrionConfig, renamed=RENAMED, presets=TRION_PRESETS)
def scale_by_trion(
    momentum: Scalar = 0.85,
    *,
    rank: int | float = 0.25,
    preset: TrionPresetName | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    matrix_axes: AxesRule = axes_by_name,
    **options: Unpack[TrionOptions],
) -> optax.GradientTransformationExtraArgs:
    """Replace updates of matrices by their momentum, orthonormalised on the basis columns it aligns with best.

    Leaves that are no matrices get `optax.scale_by_adam`; a matrix whose ``rank`` exceeds its transformed size is
    orthonormalised whole. Arithmetic and state are in float32 at least; updates have the dtype of the gradients.

    Parameters
    ----------
    momentum
        As in `lowrank_core.TrionConfig`.
    rank
        Basis columns the update has: an integer, or a fraction in (0, 1] of the transformed dimension.
    preset
        Name of options that go together, of `lowrank_core.TRION_PRESETS`; those given beside it come first.
    b1, b2, eps
        Of Adam.
    matrix_axes
        As in `scale_by_dct_adam`.
    **options
        Every other field of `lowrank_core.TrionConfig`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its state is a `ScaleByLowRankState`.

    Raises
    ------
    TypeError, ValueError
        For an unknown option or a bad value; by ``init``, for a leaf that cannot be stepped as it is said to.

    References
    ----------
    I.-V. Modoranu et al., arXiv 2505.17967; for Muon, K. Jordan et al. (2024).
    """
    check_adam(b1, b2, eps)
    named = {"rank": rank, "momentum": momentum}
    config = config_of("scale_by_trion", TRION, named, options, preset)
    stepped = Options(TRION, config, needs_low_rank=False)
    return scale_by_rule(stepped, optax.scale_by_adam(b1, b2, eps), matrix_axes)


@shows_options(TrionConfig, renamed=RENAMED, presets=TRION_PRESETS)
def trion(
    learning_rate: Scalar | Callable[[Any], Any],
    momentum: Scalar = 0.85,
    weight_decay: Scalar = 0.01,
    mask: Any = None,
    *,
    rank: int | float = 0.25,
    preset: TrionPresetName | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    matrix_axes: AxesRule = axes_by_name,
    nonfinite: Nonfinite = "propagate",
    **options: Unpack[TrionOptions],
) -> optax.GradientTransformationExtraArgs:
    """Muon with a low-rank update: momentum orthonormalised on the basis columns it aligns with best.

    One learning rate serves matrices and Adam's leaves alike, though the two usually want different ones:
    `optax.partition` with the labels of `matrix_mask` gives each its own.

    Parameters
    ----------
    learning_rate
        A number, or a schedule: a function of the step count.
    momentum
        As in `lowrank_core.TrionConfig`.
    weight_decay
        Decoupled: a parameter moves by ``-learning_rate * weight_decay`` times itself too.
    mask
        Which leaves decay: a tree of booleans (or a prefix of one), or a function that returns one for the parameters;
        all by default.
    rank, preset, b1, b2, eps, matrix_axes, **options
        As in `scale_by_trion`.
    nonfinite
        What is done about an update that holds NaN or infinity: ``"propagate"`` steps on it; ``"skip"`` returns zeros
        and the state as it was, and counts in it (that of `optax.apply_if_finite`, which the whole is wrapped in);
        ``"raise"`` is an error that names the leaf, for steps that are not traced.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        The transformation; its ``update`` needs the parameters.

    Raises
    ------
    TypeError, ValueError
        As `scale_by_trion`.

    References
    ----------
    I.-V. Modoranu et al., arXiv 2505.17967; for Muon, K. Jordan et al. (2024).
    """
    check_rates(learning_rate, weight_decay, mask)
    scale = scale_by_trion(
        momentum,
        rank=rank,
        preset=preset,
        b1=b1,
        b2=b2,
        eps=eps,
        matrix_axes=matrix_axes,
        **options,
    )
    whole = in_wide_precision(
        optax.chain(
            scale,
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
    return watched(whole, nonfinite)
