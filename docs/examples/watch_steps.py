"""Train the language model of `pretrain_lm.py` with DCT-AdamW and record what steps do to its matrices.

    python docs/examples/watch_steps.py

writes `watch_steps.json`, a row for each matrix and each step that was measured, and two pictures
of them: `watch_steps_energy.png` and `watch_steps_columns.png`. It takes the arguments of
`pretrain_lm.py` that are about the run, and `--every` and `--matrix`.

Needs `pip install 'lowrank-core[examples]'`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from _settings import Settings, make_parser, settings_from, whole
from _text import load
from lowrank_torch import plot
from pretrain_lm import OPTIMIZERS, Training

MATRIX = "blocks.1.attention.q.weight"


def watch(training: Training, settings: Settings, every: int) -> list[Any]:
    """Train, and return a row for each matrix of each step that was measured."""
    corpus, window = load(settings.text), settings.length + 1
    training.optimizer.record_diagnostics(every)
    rows: dict[Any, Any] = {}
    for step in range(settings.steps):
        batch = corpus.batch(step, seed=settings.seed, count=settings.batch, window=window)
        loss, _ = training.step(batch)
        rows |= {(row.step, row.name): row for row in training.optimizer.diagnostics()}
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}: loss {loss:.3f}", flush=True)
    return list(rows.values())


def rounded(row: Any) -> dict[str, Any]:
    """A row as it is written, its numbers to four places."""
    kept = row._asdict() | {k: float(f"{v:.4g}") for k, v in row.numbers().items()}
    return {name: value for name, value in kept.items() if name != "columns" or value}


def main(arguments: list[str] | None = None) -> int:
    """Run what a command line asks for; the exit status."""
    parser = make_parser("Record what steps do.", ["dct-adamw"], "watch_steps.png")
    parser.set_defaults(json=Path("watch_steps.json"))
    parser.add_argument("--every", type=whole(1), default=10, help="steps between two measurements")
    parser.add_argument("--matrix", default=MATRIX, help="the one whose columns are drawn")
    known = parser.parse_args(arguments)
    settings = settings_from(parser, arguments, {"dct-adamw": OPTIMIZERS["dct-adamw"].lr})
    training = Training("dct-adamw", settings.rates[0], settings)
    names = [row.name for row in training.optimizer.summary() if row.algorithm != "adamw"]
    if known.matrix not in names:
        parser.error(f"argument --matrix: must be one of {', '.join(names)}, got {known.matrix!r}")
    rows = watch(training, settings, known.every)
    # Of one matrix alone the columns are kept: of all they would be most of the file.
    kept = [row if row.name == known.matrix else row._replace(columns=()) for row in rows]
    text = ",\n".join(json.dumps(rounded(row)) for row in kept)
    known.json.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    folder = known.json.parent
    plot.energy(rows).savefig(folder / "watch_steps_energy.png", dpi=140)
    plot.columns(rows, known.matrix).savefig(folder / "watch_steps_columns.png", dpi=140)
    print(f"{len(rows)} rows: {known.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
