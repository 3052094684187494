"""DCT-AdamW as Optax transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import optax

from lowrank_core import DCTAdamWConfig
from lowrank_core._typing import Scalar
from lowrank_core.option_types import Nonfinite, PresetName
from lowrank_core.rules.known import DCT_ADAMW
from lowrank_core.rules.options import shows_options
from lowrank_core.rules.presets import PRESETS
from lowrank_jax._axes import AxesRule, axes_by_name
from lowrank_jax._nonfinite import watched
from lowrank_jax._option_types import DCTAdamWOptions
from lowrank_jax._options import RENAMED, check_adam, check_rates, config_of
from lowrank_jax._precision import in_wide_precision
from lowrank_jax._scale import Options, scale_by_rule


@shows_options(DCTAdamWConfig, renamed=RENAMED, presets=PRESETS)
def scale_by_dct_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    rank: int | float = 0.25,
    preset: PresetName | None = "factored",
    matrix_axes: AxesRule = axes_by_name,
    **options: Unpack[DCTAdamWOptions],
) -> optax.GradientTransformationExtraArgs:
    """Rescale updates by Adam's moments, kept for matrices on the few basis columns each gradient aligns with.

    Leaves that are no matrices, and matrices whose rank would not be below the transformed size, get
    `optax.scale_by_adam`. Arithmetic and state are in float32 at least; updates have the dtype of the gradients.

    Parameters
    ----------
    b1, b2, eps
        Adam's decay rates, dimensionless, and what is added to the root of the second moment, in the units of the
        gradient; for every leaf.
    rank
        Basis columns kept: an integer, or a fraction in (0, 1] of the transformed dimension.
    preset
        Name of options that go together, of `lowrank_core.PRESETS`; those given beside it come first. ``"factored"``
        keeps AdamW's rate; ``None`` is the plain rule, the defaults of `lowrank_core.DCTAdamWConfig`.
    matrix_axes
        Which leaves are matrices, along which axes: a tree of `MatrixAxes` and ``None``, in which what stands at a node
        holds for all leaves below it, or a function ``(path, leaf)`` that returns one of the two; `axes_by_name` by
        default.
    **options
        Every other field of `lowrank_core.DCTAdamWConfig`.

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
    I.-V. Modoranu et al., arXiv 2505.17967; D. P. Kingma and J. Ba, arXiv 1412.6980.
    """
    check_adam(b1, b2, eps)
    named = {"rank": rank, "betas": (b1, b2), "eps": eps}
    config = config_of("scale_by_dct_adam", DCT_ADAMW, named, options, preset)
    stepped = Options(DCT_ADAMW, config, needs_low_rank=True)
    return scale_by_rule(stepped, optax.scale_by_adam(b1, b2, eps), matrix_axes)


@shows_options(DCTAdamWConfig, renamed=RENAMED, presets=PRESETS)
def dct_adamw(
    learning_rate: Scalar | Callable[[Any], Any],
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.01,
    mask: Any = None,
    *,
    rank: int | float = 0.25,
    preset: PresetName | None = "factored",
    matrix_axes: AxesRule = axes_by_name,
    nonfinite: Nonfinite = "propagate",
    **options: Unpack[DCTAdamWOptions],
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose moments live on the few basis columns each gradient aligns with.

    Parameters
    ----------
    learning_rate
        A number, or a schedule: a function of the step count.
    b1, b2, eps
        As in `scale_by_dct_adam`.
    weight_decay
        Decoupled: a parameter moves by ``-learning_rate * weight_decay`` times itself too.
    mask
        Which leaves decay: a tree of booleans (or a prefix of one), or a function that returns one for the parameters;
        all by default.
    rank, preset, matrix_axes, **options
        As in `scale_by_dct_adam`.
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
        As `scale_by_dct_adam`.

    References
    ----------
    I.-V. Modoranu et al., arXiv 2505.17967; for AdamW, I. Loshchilov and F. Hutter, arXiv 1711.05101.
    """
    check_rates(learning_rate, weight_decay, mask)
    whole = in_wide_precision(
        optax.chain(
            scale_by_dct_adam(
                b1, b2, eps, rank=rank, preset=preset, matrix_axes=matrix_axes, **options
            ),
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
    return watched(whole, nonfinite)
