"""The same under `jax.jit`: the transform, and optimizer steps against Optax's."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from _race import Contender, Effort, race
from _tables import Column, Findings, Table, Target

ADAMW, DCT_ADAMW, SELDOM = "AdamW (Optax)", "DCT-AdamW", "DCT-AdamW, columns every 50"
POWER, TRION, MUON = "QR every step", "Trion", "Muon (optax.contrib)"
PERIOD = 50
RATE = 1e-6
Shapes = Sequence[tuple[int, int]]


class Trained:
    """Parameters, state and the compiled step of one optimizer; both are given over to every step."""

    def __init__(self, transformation: Any, shapes: Shapes) -> None:
        import jax
        import optax

        keys = jax.random.split(jax.random.key(0), 2 * len(shapes))
        self.parameters = [
            jax.random.normal(k, s) for k, s in zip(keys[: len(shapes)], shapes, strict=True)
        ]
        self.gradients = [
            jax.random.normal(k, s) for k, s in zip(keys[len(shapes) :], shapes, strict=True)
        ]
        self.state = transformation.init(self.parameters)
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

        def step(parameters: Any, state: Any, gradients: Any) -> Any:
            updates, state = transformation.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        begin = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
            self.parameters, self.state, self.gradients
        )
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin
        memory: Any = self.compiled.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes
        self.block: Callable[[Any], Any] = jax.block_until_ready

    def step(self) -> None:
        """Do one step and wait for it."""
        self.parameters, self.state = self.compiled(self.parameters, self.state, self.gradients)
        self.block(self.parameters)


def optimizers(rank: int) -> dict[str, Any]:
    """Return the transformations that are compared."""
    import lowrank_jax
    import optax

    contrib: Any = importlib.import_module("optax.contrib")
    return {
        ADAMW: optax.adamw(RATE),
        DCT_ADAMW: lowrank_jax.dct_adamw(RATE, rank=rank, preset=None, residual="discard"),
        SELDOM: lowrank_jax.dct_adamw(
            RATE, rank=rank, preset=None, residual="discard", refresh_every=10**9
        ),
        POWER: lowrank_jax.dct_adamw(
            RATE, rank=rank, preset=None, residual="discard", basis="power"
        ),
        TRION: lowrank_jax.trion(RATE, rank=rank),
        MUON: contrib.muon(RATE),
    }


def transforms(size: int, effort: Effort) -> Table:
    """Time the transform of a square matrix, compiled."""
    import jax
    from jax import numpy as jnp

    import lowrank_core

    x = jax.random.normal(jax.random.key(0), (size, size))
    functions: dict[str, Callable[[Any], Any]] = {
        "bare `jax.numpy.fft.rfft`": jnp.fft.rfft,
        "`dct`": partial(lowrank_core.dct, method="fft"),
        "`idct`": partial(lowrank_core.idct, method="fft"),
        "`jax.scipy.fft.dct`": partial(jax.scipy.fft.dct, norm="ortho"),
        "product with the basis": partial(lowrank_core.dct, method="matmul"),
    }
    wait: Callable[[Any], Any] = jax.block_until_ready
    contenders = []
    for name, function in functions.items():
        compiled = jax.jit(function)
        call = partial(lambda compiled: wait(compiled(x)), compiled)
        contenders.append(Contender(name, call))
    times = race(contenders, effort)
    table = Table(
        "jax-transform",
        f"Transform of the rows of a {size} x {size} float32 matrix under `jax.jit`",
        (Column("transform"), Column("ms", "ms"), Column("over the bare FFT", "x")),
    )
    reference = times[contenders[0].name]
    for name, own in times.items():
        table.add(name, own.seconds(), own.ratio(reference))
    return table


def steps(
    title: str, name: str, shapes: Shapes, rank: int, effort: Effort
) -> tuple[Table, list[Target]]:
    """Time a step of every transformation on matrices of ``shapes``."""
    trained = {label: Trained(made, shapes) for label, made in optimizers(rank).items()}
    contenders = []
    for label, own in trained.items():
        if label == SELDOM:
            refresh = trained[DCT_ADAMW].step
            contenders.append(Contender(label, own.step, refresh, PERIOD))
        else:
            contenders.append(Contender(label, own.step))
    times = race(contenders, effort)
    table = Table(
        name,
        title,
        (
            Column("optimizer"),
            Column("step, ms", "ms"),
            Column("over AdamW", "x"),
            Column("compilation, s", "s"),
            Column("state, MB", "MB"),
            Column("temporaries, MB", "MB"),
            Column("remark"),
        ),
        note="Parameters and state are donated. Temporaries are those of XLA's own analysis.",
    )
    for label, compiled in trained.items():
        taken = times[label]
        table.add(
            label,
            taken.seconds(),
            taken.ratio(times[ADAMW]),
            compiled.compile_seconds,
            float(compiled.state_bytes),
            float(compiled.temporary_bytes),
            taken.remark(),
        )
    ours = times[DCT_ADAMW]
    what = f"JAX, {name.removeprefix('jax-')}"
    targets = [
        Target(f"{what}: DCT-AdamW over AdamW (Optax)", 4.0, ours.ratio(times[ADAMW])),
        Target(f"{what}: DCT-AdamW over QR every step", 0.4, ours.ratio(times[POWER])),
        Target(f"{what}: Trion over {MUON}", 0.4, times[TRION].ratio(times[MUON])),
    ]
    if len(shapes) == 1:
        # Of several, XLA has temporaries of all at once on a CPU, where it orders for concurrency.
        temporary = trained[DCT_ADAMW].temporary_bytes / (4 * math.prod(shapes[0]))
        name = f"{what}: temporaries of DCT-AdamW over the matrix"
        targets.append(Target(name, 1.5, temporary))
    return table, targets


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time the transform, one large matrix and the matrices of one block of Llama-60M."""
    from part_models import block

    findings = Findings([transforms(64 if quick else 4096, effort.share(0.25))])
    side, rank = (32, 8) if quick else (2048, 512)
    cases = [("matrix", f"One step on a {side} x {side} matrix, rank {rank}", [(side, side)], rank)]
    if not quick:
        title = "One step on a block of Llama-60M, rank 128"
        cases.append(("block", title, list(block(512, 1376)), 128))
    for name, title, shapes, rank in cases:
        table, targets = steps(title, f"jax-{name}", shapes, rank, effort.share(0.3))
        findings.tables.append(table)
        findings.targets += targets
    return findings
