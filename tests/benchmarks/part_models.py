"""Whole models: one optimizer step on the hidden matrices of Llama models, for every optimizer compared."""

from __future__ import annotations

from _peers import PEERS
from _race import Effort
from _steps import STEP_COLUMNS, Shapes, StepRace
from _tables import Findings, Table


def block(width: int, hidden: int, *, narrow: int | None = None) -> Shapes:
    """Return the matrices of one block; ``narrow`` is the height of keys and values that several queries share."""
    keys = narrow or width
    attention = [(width, width), (keys, width), (keys, width), (width, width)]
    return [*attention, (hidden, width), (hidden, width), (width, hidden)]


#: Name: matrices of a block, blocks of the model, blocks timed, rank, and the share of the time.
MODELS = {
    "Llama-60M": (block(512, 1376), 8, 8, 128, 0.18),
    "Llama-130M": (block(768, 2048), 12, 4, 192, 0.22),
    "Llama-350M": (block(1024, 2736), 24, 2, 256, 0.22),
    "7B": ([(4096, 4096), (1024, 4096), (4096, 11008)], 32, 1, 1024, 0.38),
}
QUICK_MODELS = {"Llama-tiny": (block(32, 48, narrow=16), 2, 1, 8, 1.0)}


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time a step on the matrices of each model."""
    findings = Findings()
    for name, (shapes, blocks, timed, rank, part) in (QUICK_MODELS if quick else MODELS).items():
        millions = sum(rows * columns for rows, columns in shapes) * timed / 1e6
        what = "one matrix of each kind" if name == "7B" else f"{timed} of {blocks} blocks"
        table = Table(
            f"models-{name}",
            f"{name}: {what}, {millions:.0f} million parameters, rank {rank}",
            STEP_COLUMNS,
        )
        steps = StepRace(list(PEERS), list(shapes) * timed, rank, effort.share(part))
        steps.add_to(table)
        findings.tables.append(table)
    return findings
