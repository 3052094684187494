"""Options that go together, by names that say what they give."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lowrank_core._checks import check_choice
from lowrank_core.rules.options import AS_PRESET
from lowrank_core.rules.rule import Rule

_FACTORED: dict[str, Any] = {
    "second_moment": "factored",
    "residual": "bounded",
    "score_decay": 0.95,
    "refresh_every": 10,
    # So that the best rate is AdamW's.
    "update_scale": 2.0,
}

#: Options of DCT-AdamW by preset: dictionaries, to read, to print, or to give as ``**PRESETS["tiny"]``.
#:
#: ``factored``, which the frontends begin with, keeps a first moment for the chosen columns and nothing but means over
#: rows and columns beside it; ``tiny`` keeps that first moment in 8 bits. The others do as methods of others do with
#: the whole of their state:
#: ``galore`` (J. Zhao et al., arXiv 2403.03507), ``fira`` (X. Chen et al., arXiv 2410.01623), ``frugal`` (P. Zmushko et
#: al., arXiv 2411.07837), ``ldadam`` (T. Robert et al., arXiv 2410.16103) and ``paper``, DCT-AdamW as it was published
#: (I.-V. Modoranu et al., arXiv 2505.17967).
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "factored": MappingProxyType(_FACTORED),
        "tiny": MappingProxyType({**_FACTORED, "moment_bits": 8}),
        "galore": MappingProxyType({"basis": "svd", "refresh_every": 200, "residual": "discard"}),
        "fira": MappingProxyType({"basis": "svd", "refresh_every": 200, "residual": "scaled"}),
        "frugal": MappingProxyType({"basis": "svd", "refresh_every": 200, "residual": "sign"}),
        "ldadam": MappingProxyType({"basis": "power", "residual": "error_feedback"}),
        "paper": MappingProxyType(
            {"score": "l1", "residual": "error_feedback", "feedback_bits": 8}
        ),
    }
)


#: Options of Trion by preset. ``best`` is what a study found ahead of all that it compared: rows evened, the momentum
#: in 8 bits, and the update as long as AdamW's rates want it, whatever the shape of a matrix and the rank. It leaves
#: the rank to the user, which decides what a step costs and not what state there is.
TRION_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "best": MappingProxyType(
            {
                "row_decay": 0.95,
                "momentum_bits": 8,
                "scale": "rms",
                "rank_scaling": True,
                "update_scale": 8.0,
            }
        )
    }
)


def with_preset(
    preset: str | None,
    options: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]] = PRESETS,
) -> dict[str, Any]:
    """Return ``options`` over those of one of ``presets``, without such as are `AS_PRESET`.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    given = {
        name: value
        for name, value in options.items()
        if not (isinstance(value, str) and value == AS_PRESET)
    }
    if preset is None:
        return given
    check_choice("preset", preset, tuple(presets))
    return {**presets[preset], **given}


def config_from(rule: Rule, options: Mapping[str, Any], preset: str | None) -> Any:
    """Return the configuration of ``rule`` with ``options``, of which some may have come with ``preset``.

    Raises
    ------
    TypeError, ValueError
        As the configuration does. Where all would be well without the preset, the error says so.
    """
    try:
        return rule.config(**options)
    except ValueError as error:
        chosen = {} if preset is None else rule.presets[preset]
        begun = [
            name
            for name, value in chosen.items()
            if type(options.get(name)) is type(value) and options[name] == value
        ]
        if not begun:
            raise
        try:
            rule.config(**{name: value for name, value in options.items() if name not in begun})
        except ValueError:
            raise error from None
        blamed = [name for name in begun if name in str(error)] or begun
        named = ", ".join(f"{name}={chosen[name]!r}" for name in blamed)
        raise ValueError(
            f"{error}; {named} comes with preset={preset!r}, which preset=None, the plain rule, leaves out"
        ) from None
