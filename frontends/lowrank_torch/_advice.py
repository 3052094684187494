"""What an optimizer says when it is made and is likely not what was meant."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_torch._report import ParameterSummary

# A weight of the size that layers begin with, 0.02, is followed by the next in bfloat16 after 1.2e-4 and in float16
# after 1.5e-5; Adam's steps are about as large as the rate.
_LEAST_RATES = {torch.bfloat16: 1e-4, torch.float16: 1e-5}


def check_parameters_given(name: str, params: Any) -> None:
    """Raise ``TypeError`` for a model in the place of its parameters."""
    if isinstance(params, nn.Module):
        raise TypeError(
            f"{name} takes parameters or groups of them, got a model ({type(params).__name__}): use "
            f"{name}.for_model(model, ...)"
        )


def check_model_given(name: str, model: Any) -> None:
    """Raise ``TypeError`` for parameters in the place of their model."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"for_model takes a torch.nn.Module, got {type(model).__name__}; {name}(params, ...) takes parameters"
        )


def warn_of_nothing_saved(
    rows: Sequence[ParameterSummary], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Warn if there are several matrices to be stepped at low rank and none is, because of the rank."""
    if any(row.algorithm != "adamw" for row in rows):
        return
    large = [row for row in rows if row.reason.startswith("rank ") and min(row.shape) > 1]
    if len(large) > 1:
        ranks = ", ".join(sorted({repr(g["rank"]) for g in groups if g["algorithm"] != "adamw"}))
        warnings.warn(
            f"no parameter is stepped at low rank, so that AdamW steps all of them and nothing is saved: rank {ranks} "
            f"is not below the size of any of {len(large)} matrices, the first of which is {large[0].name} of shape "
            f"{large[0].shape}; a fraction such as rank=0.25 fits all",
            stacklevel=4,
        )


def warn_of_lost_updates(groups: Sequence[Mapping[str, Any]]) -> None:
    """Warn if weights are so narrow, and the rate so small, that rounding to nearest loses most updates."""
    for group in groups:
        if group["stochastic_rounding"] or isinstance(group["lr"], Tensor):
            continue
        for kind in dict.fromkeys(parameter.dtype for parameter in group["params"]):
            if 0 < group["lr"] < _LEAST_RATES.get(kind, 0):
                warnings.warn(
                    f"weights are {kind} and the rate is {group['lr']:g}: most updates are smaller than what such a "
                    "weight can change by, and are rounded away; set stochastic_rounding=True, or keep weights in "
                    "float32 (torch.autocast)",
                    stacklevel=4,
                )
                return


def of_checkpoint(state_dict: Any, algorithm: str) -> str:
    """Return what to do about a state dict that does not fit, if it is one of another optimizer; else nothing."""
    try:
        group = state_dict["param_groups"][0]
    except (KeyError, IndexError, TypeError):
        return ""
    if not isinstance(group, Mapping) or group.get("algorithm") in (algorithm, "adamw"):
        return ""
    saved = group.get("algorithm")
    if saved is None:
        saved = "torch.optim.AdamW" if "betas" in group else "another optimizer"
    return (
        f"The checkpoint is of {saved}, and this is {algorithm}: their states do not go together. Load the weights "
        "alone and start this optimizer anew, with a short warm-up."
    )
