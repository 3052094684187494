"""One matrix: the optimizer step of every rule that a target names, on square matrices at several ranks."""

from __future__ import annotations

from collections.abc import Sequence

from _peers import ADAMW, DCT_ADAMW, DEFAULT, GALORE, MUON, PAPER, POWER, SIGN, TRION
from _race import Effort
from _steps import STEP_COLUMNS, StepRace
from _tables import Column, Findings, Table, Target

# From this side on an SVD takes many seconds.
SLOW_SVD = 4096
Cases = Sequence[tuple[int, tuple[int, ...], float]]
#: Side, ranks, and the share of the time.
CASES: Cases = ((1024, (256,), 0.06), (2048, (128, 256, 512), 0.1), (4096, (128, 512, 1024), 0.16))
QUICK_CASES: Cases = ((32, (8,), 0.3), (48, (12,), 0.3))
NAMES = (DEFAULT, DCT_ADAMW, SIGN, POWER, PAPER, f"{PAPER}, product", GALORE, TRION, MUON)
# (over what, limit by side; the sides not named have no target)
LIMITS = {
    ADAMW: {2048: 4.0, 4096: 4.0},
    PAPER: {2048: 0.25, 4096: 0.25},
    POWER: {2048: 0.4, 4096: 0.4},
    GALORE: {1024: 0.6, 2048: 0.6, 4096: 1 / 3},
}


def targets_of(steps: StepRace, side: int, rank: int, *, quick: bool) -> list[Target]:
    """Return what a race says about the targets."""
    targets = []
    for other, limits in LIMITS.items():
        limit = 1.0 if quick else limits.get(side)
        if limit is None:
            continue
        against = other
        product = f"{PAPER}, product"
        if other == PAPER and product in steps.times:
            # The paper's code has two settings: what counts is the faster one.
            seconds = {name: steps.times[name].seconds() for name in (PAPER, product)}
            against = min(seconds, key=seconds.__getitem__)
        ratio = steps.whole_ratio(DCT_ADAMW, against)
        why = steps.why_not(DCT_ADAMW, against)
        name = f"DCT-AdamW over {against}, side {side}, rank {rank}"
        targets.append(Target(name, limit, ratio, remark="" if ratio is not None else why))
    if rank * 4 == side:
        ratio = steps.ratio(TRION, MUON)
        targets.append(Target(f"Trion over {MUON}, side {side}, rank {rank}", 0.4, ratio))
    return targets


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time the steps, a table for each side."""
    findings = Findings()
    for side, ranks, part in QUICK_CASES if quick else CASES:
        table = Table(
            f"matrix-{side}",
            f"One step on a {side} x {side} matrix",
            (Column("rank", "count"), *STEP_COLUMNS),
        )
        for rank in ranks:
            # An SVD costs the same at every rank: GaLore is timed at one of them where it takes seconds.
            galore = side < SLOW_SVD or rank == ranks[len(ranks) // 2]
            names = [name for name in NAMES if galore or name != GALORE]
            more = 2 if galore and side >= SLOW_SVD else 1
            steps = StepRace(names, [(side, side)], rank, effort.share(part * more))
            steps.add_to(table, float(rank))
            targets = targets_of(steps, side, rank, quick=quick)
            findings.targets += [
                target for target in targets if galore or GALORE not in target.name
            ]
        findings.tables.append(table)
    return findings
