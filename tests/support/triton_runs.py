"""The Triton kernels in Triton's interpreter beside `StandardOps` in float64: one process for all cases.

``python triton_runs.py NAME...`` prints a JSON object: for each case named what it found, numbers by name. Triton
interprets only where ``TRITON_INTERPRET=1`` is set before it is imported.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

if __name__ == "__main__" and os.environ.get("LOWRANK_KERNELS_ON", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from lowrank_backends import _torch_panels, _torch_rows
from lowrank_torch import DCTAdamW, Trion, _rows
from torch import Tensor

from lowrank_core import StandardOps, ops_for_namespace
from lowrank_core.ops.lifts import RowLift
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import RowMoments, RowStep, RowWrite

# Rows are few, since the interpreter does one after the other; and more than a program does at a time.
ROWS = 3
STANDARD = StandardOps(ops_for_namespace(torch).xp)
OPS = ops_for_namespace(torch)
BF16 = torch.bfloat16
#: Where the kernels run: on a GPU, compiled.
DEVICE = os.environ.get("LOWRANK_KERNELS_ON", "cpu")
WIDE = (torch.float32, torch.float32, torch.float32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=source, dtype=torch.float64).to(DEVICE)


def gradients(*shape: int, seed: int = 0) -> Tensor:
    """Seeded numbers whose columns of coefficients differ widely, and whose rows differ in size."""
    sizes = uniform(shape[-1], seed=seed + 100) * 3 + 0.1
    rows = 10.0 ** (-3 * uniform(shape[-2], 1, seed=7))
    return STANDARD.idct(normal(*shape, seed=seed).double() * sizes * rows, axis=-1).float()


def relative(found: Tensor, wanted: Tensor, start: Tensor | float = 0.0) -> float:
    """The norm of the error over that of the way from ``start``, and 1 where a shape is another."""
    if found.shape != wanted.shape:
        return 1.0
    return ((found.double() - wanted).norm() / (wanted - start).norm()).item()


def plain(
    gradient: Tensor, parameter: Tensor | None = None, added: Tensor | None = None
) -> PassedRows[Tensor]:
    """One matrix that plain steps pass over."""
    return PassedRows([gradient], [gradient if parameter is None else parameter], [added], STANDARD)


def kernels(
    gradient: Tensor,
    parameter: Tensor | None = None,
    added: Tensor | None = None,
    state: Any = (),
) -> PassedRows[Tensor]:
    """One matrix that the adapter's kernels pass over."""
    parameter = gradient if parameter is None else parameter
    kind = OPS.row_kernels([gradient], [parameter], [(*state, added)])
    assert kind is not None
    return kind([gradient], [parameter], [added], OPS)


def sums(n: int, norm: str, stack: tuple[int, ...] = (), precision: str = "highest") -> Any:
    """Errors of the sums, those of a gradient and those with a momentum, whose rows are a part of longer ones."""
    torch.set_float32_matmul_precision(precision)
    x, plus = gradients(*stack, ROWS, n), gradients(*stack, ROWS, n + 5, seed=1)[..., :n]
    errors = {}
    for name, more in (("sums", None), ("with a momentum", plus)):
        wide = None if more is None else more.double()
        wanted = plain(x.double(), added=wide).sums((norm,))
        errors[name] = relative(kernels(x, added=more).sums((norm,)), wanted)
    return errors


def lifts(
    n: int, stack: tuple[int, ...] = (), *, kinds: Any = WIDE, precision: str = "highest",
    tensors: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Errors of the passes of Trion after its sums, with gradient, parameter and momentum of these ``kinds``."""
    torch.set_float32_matmul_precision(precision)
    shape, rank = (*stack, ROWS, n), max(2, n // 4)
    # Rows of a parameter may be a part of longer ones.
    parameter = normal(*stack, ROWS, n + 5, seed=2).to(kinds[1])[..., :n]
    gradient, momentum = (
        gradients(*shape, seed=1).to(kinds[0]),
        gradients(*shape, seed=3).to(kinds[2]),
    )
    indices = job_of(n, "discard", stack, factored=False, moved=False).indices
    # Column 0 is one whose scale is not that of the others.
    indices[..., 0] = 0
    wide = gradient.double(), momentum.double()
    b = plain(wide[0], added=wide[1]).take(indices)
    errors = {"columns": relative(kernels(gradient, added=momentum).take(indices), b)}
    alone = plain(wide[0]).take(indices)
    errors["columns alone"] = relative(kernels(gradient).take(indices), alone)
    job = RowLift(indices, b, normal(*shape[:-1], rank, seed=4).double(), 0.15, 3)
    lr, decay = 0.01, 0.1
    own = plain(wide[0], parameter.double(), wide[1])
    ((wanted, after),) = own.lift(job, [RowWrite(lr, decay)])
    start = parameter.double() * (1 - lr * decay)
    how: Any = (lr, decay)
    if tensors:
        how = tuple(torch.tensor(number, device=DEVICE) for number in how)
    job = job._replace(coefficients=job.coefficients.float(), update=job.update.float())
    ((found, kept),) = kernels(gradient, parameter, momentum).lift(job, [RowWrite(*how)])
    errors["in place"] = float(found is not parameter or kept is not momentum)
    errors["parameter"] = off(found, wanted, start)
    errors["momentum"] = off(kept, after, 0.0)
    return errors


def off(found: Tensor, wanted: Tensor, start: Tensor | float) -> float:
    """The error of what has moved from ``start``; of bfloat16 the share of numbers that are none of the two nearest."""
    if found.dtype != BF16:
        return relative(found, wanted, start)
    # The interpreter cuts where a GPU rounds. What is left of numbers that cancel is as exact as these were.
    least = 1e-3 * wanted.square().mean().sqrt()
    allowed = wanted.abs() * 2.0**-7 + least
    return ((found.double() - wanted).abs() > allowed).double().mean().item()


def job_of(n: int, rest: str, stack: tuple[int, ...], *, factored: bool, moved: bool) -> RowStep:
    """A step whose columns are seeded, some of which stood elsewhere and some are new, and one place is empty."""
    count, rank = max(1, torch.Size(stack).numel()), max(2, n // 4)
    source = torch.Generator().manual_seed(n + rank)
    draws = [torch.randperm(n, generator=source)[:rank].sort().values for _ in range(count)]
    indices = torch.stack(draws)
    before = torch.stack([torch.randperm(rank, generator=source) for _ in range(count)])
    before[:, ::3] = -1
    eps = torch.full((count, rank), 1e-8, dtype=torch.float64)
    eps[:, rank // 2] = torch.inf
    column = shares = None
    if rest == "normalized":
        column = uniform(count, n, seed=11)
    if factored:
        own = uniform(count, n, seed=12) + 0.1
        shares = own.gather(-1, indices.to(DEVICE))
        own[:, 1] = -1.0
        column = own if rest == "bounded" else None

    def laid(x: Tensor | None) -> Any:
        return None if x is None else x.view(*stack, *x.shape[1:]).to(DEVICE)

    scale = torch.linspace(0.2, 0.3, count, dtype=torch.float64).view(stack).to(DEVICE)
    places = laid(before.int()) if moved else None
    return RowStep(
        laid(indices.int()), places, laid(eps), (0.9, 0.99), (0.271, 0.0297, 0.0297),
        rest, scale, laid(column), laid(shares), 0.99, 1e-8, 3,
    )  # fmt: skip


def in_float32(job: RowStep, *, tensors: bool) -> RowStep:
    """The same as kernels take it, numbers of the host as ``tensors`` on demand."""
    arrays = ((name, getattr(job, name)) for name in ("eps", "scale", "column", "shares"))
    given: dict[str, Any] = {name: x.float() for name, x in arrays if x is not None}
    if tensors:
        given["weights"] = tuple(torch.tensor(w, device=DEVICE) for w in job.weights)
    return job._replace(**given)


def rows(
    n: int, rest: str, stack: tuple[int, ...] = (), *, factored: bool = False, moved: bool = True,
    kinds: Any = WIDE, precision: str = "highest", tensors: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Errors of one step of rows, with gradient, parameter and moments of these ``kinds``."""
    torch.set_float32_matmul_precision(precision)
    shape, low = (*stack, ROWS, n), (*stack, ROWS, max(2, n // 4))
    # Rows of a parameter may be a part of longer ones.
    parameter = normal(*stack, ROWS, n + 5, seed=2).to(kinds[1])[..., :n]
    gradient = gradients(*shape, seed=1).to(kinds[0])
    first, second = normal(*low, seed=3) * 0.1, normal(*low, seed=4) ** 2 * 0.1
    energy = uniform(*stack, ROWS, 1, seed=5).float() if factored else None
    given = RowMoments(first.to(kinds[2]), None if factored else second.to(kinds[2]), energy)
    wide = RowMoments(*(None if x is None else x.double() for x in given))
    job = job_of(n, rest, stack, factored=factored, moved=moved)
    lr, decay = 0.01, 0.1
    own = plain(gradient.double(), parameter.double())
    ((wanted, after),) = own.step([wide], job, [RowWrite(lr, decay)])
    start = parameter.double() * (1 - lr * decay)
    how: Any = (lr, decay)
    if tensors:
        how = tuple(torch.tensor(number, device=DEVICE) for number in how)
    own = kernels(gradient, parameter, state=given)
    ((found, kept),) = own.step([given], in_float32(job, tensors=tensors), [RowWrite(*how)])
    errors = {"in place": float(found is not parameter or kept.first is not given.first)}
    errors["parameter"] = off(found, wanted, start)
    pairs = zip(("first", "second", "rows"), kept, after, strict=True)
    return errors | {name: relative(x, y) for name, x, y in pairs if y is not None}


def optimizer(
    options: dict[str, Any], kind: torch.dtype = torch.float32, count: int = 1, make: Any = DCTAdamW
) -> dict[str, float]:
    """Three steps of the PyTorch optimizer with the kernels, beside three without."""
    torch.set_float32_matmul_precision("highest")
    starts = [normal(ROWS, 96, seed=20 + place) for place in range(count)]
    runs, takes = [], _torch_rows.takes
    for own_takes in (takes, lambda *_: False):
        _torch_rows.takes = own_takes
        parameters = [torch.nn.Parameter(start.clone().to(kind)) for start in starts]
        own = make(
            parameters, lr=0.02, weight_decay=0.1, rank=0.25, side="right",
            **{"preset": None, **options},
        )  # fmt: skip
        for step in range(3):
            for place, parameter in enumerate(parameters):
                parameter.grad = gradients(ROWS, 96, seed=30 + 10 * step + place).to(kind)
            own.step()
        runs.append((parameters, [copy.deepcopy(own.state[p]) for p in parameters]))
    _torch_rows.takes = takes
    (ours, states), (theirs, others) = runs
    errors: dict[str, float] = {}
    for start, p, q, state, other in zip(starts, ours, theirs, states, others, strict=True):
        if kind == BF16:
            error = (p != q).double().mean().item()
        else:
            error = relative(p.detach(), q.detach().double(), start.double())
        errors["parameter"] = max(error, errors.get("parameter", 0.0))
        errors["state"] = float(state.keys() != other.keys() or state["step"] != 3)
        if "indices" in other:
            errors["columns"] = float(not torch.equal(state["indices"], other["indices"]))
        for name in ("first_moment", "second_moment", "momentum"):
            x, y = state.get(name), other.get(name)
            if x is not None and x.dtype == BF16:
                errors[name] = (x != y).double().mean().item()
            elif x is not None:
                errors[name] = relative(x, y.double())
    return errors


def interrupted(make: Any = DCTAdamW, launch: str = "step_rows") -> dict[str, float]:
    """Two members, a launch each, of which the second fails: nothing is done twice when the step is taken up again."""
    starts = [normal(ROWS, 96, seed=place) for place in range(2)]
    groups = [[torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2)]
    for group in groups:
        for place, parameter in enumerate(group):
            parameter.grad = gradients(ROWS, 96, seed=3 + place)
    steppers = [make(group, 0.01, rank=0.25, side="right", preset=None) for group in groups]
    launches = _torch_rows.launches().LaunchedRows
    takes, small = _torch_rows.takes, _rows.SMALL_MEMBER
    real, calls = getattr(launches, launch), []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    setattr(launches, launch, failing)
    _rows.SMALL_MEMBER = 0
    with suppress(KeyboardInterrupt):
        steppers[0].step()
    setattr(launches, launch, real)
    _rows.SMALL_MEMBER = small
    _torch_rows.takes = lambda *_: False
    steppers[1].step()
    _torch_rows.takes = takes
    pairs = zip(*groups, starts, strict=True)
    errors = [relative(p.detach(), q.detach().double(), start) for p, q, start in pairs]
    # Taken up again, the first is asked for once more and passes over what it has done.
    return {"launches": float(len(calls) != 4), "parameter": max(errors)}


FAST: dict[str, Callable[[], dict[str, float]]] = {
    "sums 2": partial(sums, 2, "l2"),
    "sums 96 l1, a stack": partial(sums, 96, "l1", (2,)),
    "sums 768": partial(sums, 768, "l2"),
    "sums 96 high": partial(sums, 96, "l2", precision="high"),
    "rows 96 discard, tensors": partial(rows, 96, "discard", tensors=True),
    "rows 768 sign": partial(rows, 768, "sign"),
    "rows 40 normalized, a stack, columns kept": partial(rows, 40, "normalized", (2,), moved=False),
    "rows 96 bounded": partial(rows, 96, "bounded", factored=True),
    "rows 96 sign, high": partial(rows, 96, "sign", precision="high"),
    "rows 96 discard, bfloat16": partial(rows, 96, "discard", kinds=(BF16, BF16, WIDE[2])),
    "optimizer, the default on a stack": partial(optimizer, {"preset": "factored"}, count=2),
    "optimizer, the plain rule on a stack": partial(optimizer, {}, count=2),
    "optimizer, a moment in codes, which no kernel takes": partial(optimizer, {"preset": "tiny"}),
    "optimizer, capturable": partial(
        optimizer, {"residual": "discard", "refresh_every": 2, "capturable": True}
    ),
    "optimizer, moments rounded at random": partial(
        optimizer, {"state_dtype": "bfloat16", "residual": "discard"}
    ),
    "optimizer, parameter rounded at random": partial(
        optimizer, {"stochastic_rounding": True, "residual": "discard"}, BF16
    ),
    "interrupted": interrupted,
    "lift 96, tensors": partial(lifts, 96, tensors=True),
    "lift 40, a stack": partial(lifts, 40, (2,)),
    "lift 768 high": partial(lifts, 768, precision="high"),
    "lift 96, bfloat16": partial(lifts, 96, kinds=(BF16, BF16, BF16)),
    "Trion": partial(optimizer, {"score": "l1"}, make=Trion),
    "Trion on a stack": partial(optimizer, {}, count=2, make=Trion),
    "Trion, momentum rounded at random": partial(
        optimizer, {"state_dtype": "bfloat16"}, make=Trion
    ),
    "Trion, parameter rounded at random": partial(
        optimizer, {"stochastic_rounding": True}, BF16, make=Trion
    ),
    "Trion interrupted": partial(interrupted, Trion, "lift_rows"),
}
SLOW: dict[str, Callable[[], dict[str, float]]] = {
    **{
        f"sums {n} {norm}": partial(sums, n, norm)
        for n in (4, 18, 128, 640, 1000, 2048, 4096, 5120, 8192)
        for norm in ("l2", "l1")
    },
    **{
        f"rows {n} {rest} {precision}": partial(
            rows, n, rest, factored=rest == "bounded", precision=precision
        )
        for n in (10, 640, 4096)
        for rest in ("discard", "sign", "normalized", "bounded")
        for precision in ("highest", "high")
    },
    **{
        f"lift {n} {precision}": partial(lifts, n, precision=precision)
        for n in (10, 640, 4096, 8192)
        for precision in ("highest", "high")
    },
    "rows 2048 sign highest": partial(rows, 2048, "sign"),
    "rows 8192 sign high": partial(rows, 8192, "sign", precision="high"),
    "rows 96 factored discard": partial(rows, 96, "discard", factored=True),
    "optimizer normalized": partial(optimizer, {"residual": "normalized", "refresh_every": 2}),
    "optimizer sampled": partial(optimizer, {"selection": "sampled", "score": "l1"}),
    "optimizer factored": partial(
        optimizer,
        {"residual": "bounded", "second_moment": "factored", "betas": (0.9, 0.99)},
        count=2,
    ),
}

if __name__ == "__main__":
    if DEVICE == "cpu":
        _torch_rows.interpret_on_cpu()
        # The panels take the largest matrices before anybody asks for kernels.
        _torch_panels.LEAST = 2**62
    cases = {**FAST, **SLOW}
    print(json.dumps({name: cases[name]() for name in sys.argv[1:]}))
