"""What recording diagnostics adds to a step: of one that is measured, of one that is not, and of one in a hundred.

    python tests/benchmarks/diagnostics_cost.py [--seconds 20]

Ratios to the same optimizer without, in turns in one process, medians over rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lowrank_torch
from _peers import RATE
from _race import Contender, Effort, race
from _steps import Matrices

#: Rows, columns, and how many such matrices.
CASES = ((128, 128, 24), (256, 256, 12), (1024, 1024, 4))
EVERY = 100


def ratios(name: str, case: tuple[int, int, int], effort: Effort) -> tuple[float, float]:
    """Return how much longer a measured step takes, and one that is not while recording is on."""
    rows, columns, count = case
    matrices = Matrices([(rows, columns)] * count)
    contenders = []
    for label, every in (("off", 0), ("measured", 1), ("not measured", 10**9)):
        optimizer = getattr(lowrank_torch, name)(matrices.parameters, lr=RATE, rank=0.25)
        optimizer.record_diagnostics(every)
        optimizer.step()
        contenders.append(Contender(label, optimizer.step, before=matrices.restore))
    times = race(contenders, effort)
    return times["measured"].ratio(times["off"]), times["not measured"].ratio(times["off"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status says whether one in a hundred costs less than 3 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each line (%(default)g)")
    seconds = parser.parse_args(arguments).seconds
    worst = 0.0
    for name in ("DCTAdamW", "Trion"):
        for case in CASES:
            measured, other = ratios(name, case, Effort(seconds))
            whole = (measured + (EVERY - 1) * other) / EVERY - 1
            worst = max(worst, whole)
            label = "{2} of {0} x {1}".format(*case)
            print(
                f"{name:9} {label:18} measured {measured:.2f}, not measured {other:.3f}, "
                f"every {EVERY}: {100 * whole:+.1f} %"
            )
    return int(worst > 0.03)


if __name__ == "__main__":
    raise SystemExit(main())
