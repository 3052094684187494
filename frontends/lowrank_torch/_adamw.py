"""Full-rank AdamW for everything that is not a hidden matrix: PyTorch's own, with float32 state throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lowrank_core.ops import Ops
from lowrank_torch._apply import Dither, write
from lowrank_torch._plan import Member

_WIDE = (torch.float32, torch.float64)


def adamw_step(members: Sequence[Member], group: Mapping[str, Any], ops: Ops) -> None:
    """Do one AdamW step on every parameter of a group, making its state first where there is none."""
    wide: list[Member] = []
    for member in members:
        parameter, state, stream = member.parameter, member.state, member.stream
        if not state:
            dtype = parameter.dtype if parameter.dtype in _WIDE else torch.float32
            # A number that the host reads: on the CPU whatever the default device, and by `tensor`, which
            # unlike `zeros` has a value under FakeTensorMode too.
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
        if parameter.dtype in _WIDE:
            wide.append(member)
        else:
            # Arithmetic in float32, one parameter's copy at a time; the write rounds once.
            copy = parameter.float()
            _run([copy], [_gradient(parameter).float()], [state], group)
            dither = Dither(stream, int(state["step"])) if group["stochastic_rounding"] else None
            write(parameter, copy, dither, ops)
    if wide:
        chosen = [member.parameter for member in wide]
        gradients = [_gradient(parameter) for parameter in chosen]
        _run(chosen, gradients, [member.state for member in wide], group)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # noqa: S101 - the caller passes none without; this tells the type checker
    return parameter.grad


def _run(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    group: Mapping[str, Any],
) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
