"""A race of whole optimizer steps on given matrices: contenders made of peers, and the table of what they took."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _peers import ADAMW, PEERS, MissingPackageError, Peer, eigen_seconds, svd_seconds, without_svd
from _race import Contender, Effort, Times, race
from _tables import Cell, Column, Table
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

Shapes = Sequence[tuple[int, int]]


class Matrices:
    """Parameters that all contenders step, each with a gradient that is made whole again before every step."""

    def __init__(self, shapes: Shapes) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shapes = tuple(shapes)
        self.parameters = [
            Parameter(torch.randn(shape, generator=generator).mul_(0.02)) for shape in shapes
        ]
        self._gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        self.restore()

    def restore(self) -> None:
        """Give every parameter its gradient, which some peers write over."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(gradient)
            parameter.grad.resize_(gradient.shape)
            parameter.grad.copy_(gradient)


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of every tensor in an optimizer's state, in objects too."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            list(map(visit, value.values()))
        elif isinstance(value, list | tuple):
            list(map(visit, value))
        elif hasattr(value, "__dict__"):
            visit(vars(value))

    visit(dict(optimizer.state))
    # The paper's code keeps its basis on the optimizer itself.
    visit({name: value for name, value in vars(optimizer).items() if isinstance(value, Tensor)})
    return sum(seen.values())


def contender(peer: Peer, matrices: Matrices, rank: int) -> tuple[Contender, Optimizer]:
    """Return a peer as a contender on matrices, and its optimizer."""
    optimizer = peer.make(matrices.parameters, rank)

    matrices.restore()
    with contextlib.redirect_stdout(io.StringIO()), without_svd():
        begin = time.perf_counter()
        optimizer.step()
        first = 0.0 if peer.prepares_first else time.perf_counter() - begin
        if peer.prepares_first:
            optimizer.step()

    def wound(refresh: bool) -> Callable[[], object]:
        if peer.wind is None:
            return optimizer.step
        wind = peer.wind

        def step() -> None:
            wind(optimizer, refresh)
            optimizer.step()

        return step

    refresh: Callable[[], object] | None = None
    if peer.build_refreshing is not None:
        refresh = peer.build_refreshing(matrices.parameters, rank).step
        refresh()
    elif peer.period > 1:
        refresh = wound(refresh=True)
    expected = svd_seconds(matrices.shapes) if peer.svd else 0.0
    return (
        Contender(
            peer.name,
            wound(refresh=False),
            refresh,
            peer.period,
            matrices.restore,
            expected,
            first,
        ),
        optimizer,
    )


class StepRace:
    """The steps of several peers on the same matrices, with AdamW as the reference."""

    def __init__(self, names: Sequence[str], shapes: Shapes, rank: int, effort: Effort) -> None:
        matrices = Matrices(shapes)
        self.names = tuple(dict.fromkeys((ADAMW, *names)))
        self.absent: dict[str, str] = {}
        self.state: dict[str, int] = {}
        contenders, optimizers = [], {}
        for name in self.names:
            peer = PEERS[name]
            if peer.prepares_first and (seconds := eigen_seconds(shapes)) > max(
                1.0, effort.seconds
            ):
                self.absent[name] = f"left out: its first step takes about {seconds:.0f} s"
                continue
            try:
                made, optimizers[name] = contender(peer, matrices, rank)
            except MissingPackageError as error:
                self.absent[name] = str(error)
            except Exception as error:
                # That a peer fails on some shapes is a finding, that one of ours does an error.
                if not peer.package:
                    raise
                self.absent[name] = f"fails: {type(error).__name__}: {error}"
            else:
                contenders.append(made)
        self.times: dict[str, Times] = race(contenders, effort)
        self.state = {name: state_bytes(optimizer) for name, optimizer in optimizers.items()}

    def ratio(self, name: str, reference: str) -> float | None:
        """Return how many times as long one takes as another, if both were timed."""
        if name in self.times and reference in self.times:
            return self.times[name].ratio(self.times[reference])
        return None

    def whole_ratio(self, name: str, reference: str) -> float | None:
        """Return the same, unless a part of a step was left out."""
        left_out = any(
            self.times[each].left_out for each in (name, reference) if each in self.times
        )
        return None if left_out else self.ratio(name, reference)

    def why_not(self, *names: str) -> str:
        """Return why there is no ratio of ``names``."""
        absent = [self.absent[name] for name in names if name in self.absent]
        return "; ".join(absent) or "a refresh would take longer than the time given"

    def add_to(self, table: Table, *first: Cell) -> None:
        """Add a row for each peer, under ``first`` cells."""
        for name in self.names:
            if name in self.absent:
                table.add(*first, name, None, None, None, "", None, self.absent[name])
                continue
            times = self.times[name]
            remark = times.remark()
            spread = times.quartiles(self.times[ADAMW])
            if times.period > 1:
                remark = "; ".join(filter(None, (f"refresh every {times.period}", remark)))
            median = sorted(times.refresh)[len(times.refresh) // 2] if times.refresh else None
            table.add(
                *first,
                name,
                times.seconds(),
                median,
                times.ratio(self.times[ADAMW]),
                f"{spread[0]:.2f} to {spread[1]:.2f}" if len(times.step) > 1 else "",
                float(self.state[name]),
                remark,
            )


STEP_COLUMNS = (
    Column("optimizer"),
    Column("step, ms", "ms"),
    Column("of them a refresh, ms", "ms"),
    Column("over AdamW", "x"),
    Column("quartiles"),
    Column("state, MB", "MB"),
    Column("remark"),
)
