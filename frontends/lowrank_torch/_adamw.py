"""Full-rank AdamW for everything that is not a hidden matrix: PyTorch's own, with float32 state throughout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.moments import decayed_weight
from lowrank_torch._apply import Dither, rates_of, rounded
from lowrank_torch._capturable import count_of, keeping
from lowrank_torch._commit import ALL, Done, at_once, to_the_end
from lowrank_torch._input import followed
from lowrank_torch._plan import Member
from lowrank_torch._redistribute import own_rows
from lowrank_torch._sharding import Sharding, is_sharded, local_gradient, local_of
from lowrank_torch._state import as_state, placed

_WIDE = (torch.float32, torch.float64)
_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adamw_state(member: Member, sharding: Sharding | None) -> None:
    """Give a parameter the state before its first step; in ``sharding`` is how it is shared out."""
    parameter, state = member.parameter, member.state
    dtype = parameter.dtype if parameter.dtype in _WIDE else torch.float32
    state["step"] = count_of(0, member.group, local_of(parameter).device, full=True)
    for name in _MOMENTS:
        if sharding is None:
            state[name] = torch.zeros_like(parameter, dtype=dtype)
        else:
            own = torch.zeros_like(own_rows(parameter, sharding), dtype=dtype)
            state[name] = as_state(own, parameter.shape, sharding, sharding.placements)


def place_adamw_state(state: dict[str, Any], parameter: Any, sharding: Sharding | None) -> None:
    """Lay loaded state out as its parameter is, or as it is shared out.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    if is_sharded(parameter):
        sharding = Sharding(parameter.device_mesh, parameter.placements)
    for name in _MOMENTS:
        placements = None if sharding is None else sharding.placements
        state[name] = placed(state[name], sharding, placements, name)


def adamw_step(
    members: Sequence[Member], group: Mapping[str, Any], ops: Ops, sharding: Sharding | None = None
) -> None:
    """Do one AdamW step on parameters of a group, on this rank's part alone where they are shared out."""
    wide: list[_Target] = []
    for member in members:
        values, gradient = local_of(member.parameter), local_gradient(member.parameter)
        if sharding is not None:
            values, gradient = own_rows(values, sharding), own_rows(gradient, sharding)
        state = {name: local_of(value) for name, value in member.state.items()}
        if values.dtype in _WIDE:
            wide.append(_Target(values, gradient, state))
        else:
            # Arithmetic in float32, one parameter's copy at a time; the write rounds once.
            dither = None
            if group["stochastic_rounding"]:
                dither = Dither(member.stream, _next_step(state["step"], group))
            done = Done()
            target = _Target(values.float(), gradient.float(), state)
            to_the_end(partial(_step_narrow, values, target, group, dither, done, ops), done)
    fused: list[_Target] = []
    others: list[_Target] = []
    for target in wide:
        (fused if _is_fused(target, group) else others).append(target)
    if group["capturable"]:
        for target in others:
            at_once(_counted(target, group, ops))
    elif others:
        _run(others, group)
    if fused:
        at_once(_fused(fused, group))


class _Target(NamedTuple):
    """What is stepped of one parameter on this rank."""

    values: Tensor
    gradient: Tensor
    state: dict[str, Any]


def _step_narrow(
    values: Tensor,
    target: _Target,
    group: Mapping[str, Any],
    dither: Dither | None,
    done: Done,
    ops: Ops,
) -> None:
    """Do of a step on a copy of ``values`` what has not been ``done``, and round it into these."""
    if not done.blocks:
        calls = _calls(target, group, ops)
        if calls is None:
            _run([target], group)
        else:
            at_once([*calls, partial(done.blocks.add, "copy")])
    own = rounded(target.values, values.dtype, dither, ops)
    at_once([partial(values.copy_, own), partial(done.blocks.add, ALL)])


def _calls(
    target: _Target, group: Mapping[str, Any], ops: Ops
) -> list[Callable[[], object]] | None:
    """Return the calls that do a step with nothing in between, or ``None`` where PyTorch's own is more than calls."""
    if _is_fused(target, group):
        return _fused([target], group)
    return _counted(target, group, ops) if group["capturable"] else None


def _is_fused(target: _Target, group: Mapping[str, Any]) -> bool:
    """Return whether PyTorch has one kernel for a step: of plain numbers on the CPU.

    On GPUs there is one too, but its counts are a device's, for which the host would wait where it has to know them.
    """
    values, gradient, state = target
    lr, numbers = group["lr"], (*group["betas"], group["weight_decay"], group["eps"])
    if group["capturable"]:
        # It takes a rate that is a float32 tensor where the values are, and plain numbers besides.
        here = values.device, torch.float32
        takes = values.device.type in ("cpu", "cuda") and (
            (not isinstance(lr, Tensor) or (lr.device, lr.dtype) == here)
            and not any(isinstance(number, Tensor) for number in numbers)
        )
    else:
        takes = values.device.type == "cpu" and type(lr) is float
    return (
        takes
        and not torch.compiler.is_compiling()
        and gradient.dtype == values.dtype == state["exp_avg"].dtype
        and values.is_contiguous()
        and gradient.is_contiguous()
        and state["exp_avg"].is_contiguous()
        and all(type(x) in (Tensor, Parameter) for x in (values, gradient))
    )


def _fused(targets: Sequence[_Target], group: Mapping[str, Any]) -> list[Callable[[], object]]:
    """Return the calls of PyTorch's that `_run` comes to by one kernel."""
    calls: list[Callable[[], object]] = []
    alike: dict[Any, list[_Target]] = {}
    for target in targets:
        alike.setdefault((target.values.dtype, target.values.device), []).append(target)
    for own in alike.values():
        beta1, beta2 = group["betas"]
        steps = [target.state["step"] for target in own]
        calls.append(partial(torch._foreach_add_, steps, 1))
        kernel = partial(
            torch._fused_adamw_,
            [target.values for target in own],
            [target.gradient for target in own],
            [target.state["exp_avg"] for target in own],
            [target.state["exp_avg_sq"] for target in own],
            [],
            steps,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        calls.append(kernel)
    return calls


def _run(targets: Sequence[_Target], group: Mapping[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        [target.values for target in targets],
        [target.gradient for target in targets],
        [target.state["exp_avg"] for target in targets],
        [target.state["exp_avg_sq"] for target in targets],
        [],
        [target.state["step"] for target in targets],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=followed(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _counted(target: _Target, group: Mapping[str, Any], ops: Ops) -> list[Callable[[], object]]:
    """Return the calls of a step whose count is on the device, as other numbers may be that PyTorch's own refuses."""
    values, gradient, state = target
    before: tuple[Any, Any] = (state["exp_avg"], state["exp_avg_sq"])
    step, (lr, weight_decay) = state["step"] + 1, rates_of(group)
    weights: Any = [decayed_weight(beta, step, ops, before[0]) for beta in group["betas"]]
    direction, first, second = ops.adam_update(
        gradient, before, group["betas"], (weights[0], weights[1]), group["eps"]
    )
    kept = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    decay = partial(values.mul_, 1 - lr * weight_decay)
    return [decay, partial(values.sub_, direction * lr), *keeping(state, kept)]


def _next_step(count: Tensor, group: Mapping[str, Any]) -> int | Tensor:
    """Return the number of the step after ``count`` of them, as random rounding takes it."""
    return (count + 1).to(torch.int32) if group["capturable"] else int(count) + 1
