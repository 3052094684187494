"""What the lines of a study say: for every size and method the best rate, and how it did there beside AdamW."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Line = dict[str, Any]
#: What lines must share to be compared.
SIZE = ("width", "layers", "length", "batch", "steps", "text")

#: The fingerprint of the sources of Python 3.11.7's standard library, which most runs read.
TEXT = "b9a4de026ad10d5f"

#: What methods are called on the page.
NAMES = {
    "adamw": "AdamW",
    "foam": "FOAM",
    "apollo": "APOLLO",
    "scale": "SCALE",
    "racs": "RACS",
    "dion": "Dion, rank 1/4",
    "muon": "Muon",
    "galore-torch": "`galore-torch`, GaLore's own package",
    "apollo-torch": "`apollo-torch`, APOLLO's own",
    "stable-spam": "Stable-SPAM (`pytorch-optimizer`): Adam with spikes clipped",
    "paper": "`ista-daslab-optimizers`, the paper's own DCT-AdamW",
    "galore": 'GaLore (`basis="svd"`)',
    "fira": 'Fira (`residual="scaled"` with `basis="svd"`)',
    "frugal": 'FRUGAL (`residual="sign"` with `basis="svd"`)',
    "ldadam": 'LDAdam (`preset="ldadam"`)',
    "sign": "DCT-AdamW, `preset=None`",
    "factored": "DCT-AdamW, its default preset",
    "factored, 8 bits": 'DCT-AdamW, `preset="tiny"`',
    "factored, dropped": 'the preset, `residual="discard"`',
    "factored, sign": 'the preset, `residual="sign"`',
    "factored, every step": "the preset, `refresh_every=1`",
    "factored, identity": 'the preset, `basis="identity"`',
    "factored, local": 'the preset, `basis="local_dct"`',
    "factored, random": 'the preset, `basis="random"`',
    "factored, rank 1/2": "the preset, `rank=0.5`",
    "factored, rank 1/16": "the preset, `rank=1/16`",
    "best": 'Trion, `rank=1.0, preset="best"`',
    "trion": "Trion, `rank=0.5`",
    "trion, 8 bits": "Trion, `rank=0.5, momentum_bits=8`",
    "trion, all columns, 8 bits": "Trion, `rank=1.0, momentum_bits=8`",
    "trion, even rows, 8 bits": "Trion, `rank=0.5, momentum_bits=8, row_decay=0.95`",
    "trion, all columns, even rows, 8 bits": "Trion, `rank=1.0, momentum_bits=8, row_decay=0.95`",
}
#: What both tables say of a method, before what it is held against.
HEADS = ("method", "rate", "numbers a weight", "state, MB", "loss by seed", "mean")
#: Methods that are the preset with one thing changed, run at its own rate.
PARTS = tuple(
    name for name in NAMES if name.startswith("factored, ") and name != "factored, 8 bits"
)

#: Methods that keep as much state of hidden matrices as the default preset, or more, and move them as Adam does.
RIVALS = ("adamw", "foam", "apollo", "galore", "fira", "ldadam")
#: Methods whose rates are AdamW's, and what multiplies their rates in the study, which runs them with `update_scale=1`.
AT_ADAMWS_RATE = {"adamw": 1.0, "factored": 2.0, "best": 1.0}


class Standing(NamedTuple):
    """How a method did at the best of its rates."""

    method: str
    lr: float
    #: Whether that rate is the lowest or the highest tried.
    at_edge: bool
    #: Its lines there by seed.
    runs: dict[int, Line]
    #: What its loss is more than that of what it is held against, for the same seeds; empty for that itself.
    differences: list[float]

    @property
    def losses(self) -> list[float]:
        """Validation losses, seeds ascending."""
        return [self.runs[seed]["loss"] for seed in sorted(self.runs)]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.losses)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean difference; infinite for one seed."""
        count = len(self.differences)
        return statistics.stdev(self.differences) / math.sqrt(count) if count > 1 else math.inf

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state, that of tables and vectors included."""
        count: int = next(iter(self.runs.values()))["state_bytes"]
        return count


def read(path: Path) -> list[Line]:
    """The lines of a study so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sizes(lines: list[Line]) -> dict[tuple[Any, ...], list[Line]]:
    """The lines of each size, those of one size being comparable."""
    by_size: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        by_size.setdefault(tuple(line[name] for name in SIZE), []).append(line)
    return by_size


def parts(lines: list[Line]) -> list[Line]:
    """Of the lines of one size those of `PARTS`, and of the preset at the rates that these were run at."""
    rates = {line["lr"] for line in lines if line["method"] in PARTS}
    return [
        line
        for line in lines
        if line["method"] in PARTS or (line["method"] == "factored" and line["lr"] in rates)
    ]


def wholes(lines: list[Line]) -> list[Line]:
    """The lines of methods as they are, without `PARTS`."""
    return [line for line in lines if line["method"] not in PARTS]


def rivals(lines: list[Line]) -> list[Line]:
    """Of the lines of one size those of the default preset and of `RIVALS`."""
    return [line for line in lines if line["method"] in ("factored", *RIVALS)]


def at_adamws_rate(lines: list[Line]) -> list[Line]:
    """Of the lines of one size those of `AT_ADAMWS_RATE` at AdamW's best rate, whatever their own best is."""
    rate = next(lr for method, lr, _, _ in best_runs(lines) if method == "adamw")
    return [
        line
        for line in lines
        if (scale := AT_ADAMWS_RATE.get(line["method"]))
        and math.isclose(line["lr"], scale * rate, rel_tol=1e-3)
    ]


def best_runs(lines: list[Line]) -> Iterator[tuple[str, float, dict[int, Line], bool]]:
    """For every method its best rate by the seeds that all its rates have, its runs there, and if it is at an edge."""
    for method in dict.fromkeys(line["method"] for line in lines):
        rates: dict[float, dict[int, Line]] = {}
        for line in lines:
            if line["method"] == method:
                rates.setdefault(line["lr"], {})[line["seed"]] = line
        common = set.intersection(*map(set, rates.values()))

        def mean(lr: float, rates: Any = rates, common: Any = common) -> float:
            return statistics.fmean(rates[lr][seed]["loss"] for seed in common)

        best = min(rates, key=mean)
        yield method, best, rates[best], best in (min(rates), max(rates))


def standings(lines: list[Line], base: str = "adamw") -> list[Standing]:
    """How every method did among lines of one size, the lowest mean loss first."""
    best = list(best_runs(lines))
    held = next((runs for method, _, runs, _ in best if method == base), {})
    found = []
    for method, lr, runs, at_edge in best:
        shared = [] if method == base else sorted(runs.keys() & held.keys())
        differences = [runs[seed]["loss"] - held[seed]["loss"] for seed in shared]
        found.append(Standing(method, lr, at_edge, runs, differences))
    return sorted(found, key=lambda standing: standing.mean)


def against(standing: Standing, *, bold: str = "") -> str:
    """The mean difference and its standard error, in marks of ``bold`` where it is beyond two of these."""
    if not standing.differences:
        return ""
    difference = statistics.fmean(standing.differences)
    if len(standing.differences) < 2:
        return f"{difference:+.3f}, one seed"
    text = f"{difference:+.3f} ({standing.standard_error:.3f})"
    return f"{bold}{text}{bold}" if abs(difference) > 2 * standing.standard_error else text


def cells(standing: Standing, name: str, difference: str) -> list[str]:
    """What a table says of a method, by its column."""
    first = next(iter(standing.runs.values()))
    return [
        name,
        f"{standing.lr:.2g}{'*' if standing.at_edge else ''}",
        f"{first['numbers_per_weight']:.2f}",
        f"{standing.state_bytes / 1e6:.2f}",
        by_seed(standing.losses),
        f"{standing.mean:.3f}",
        difference,
    ]


def by_seed(losses: list[float]) -> str:
    """The losses of up to three seeds; of more, between what they lie."""
    if len(losses) > 3:
        return f"{min(losses):.3f} to {max(losses):.3f}, {len(losses)} seeds"
    return ", ".join(f"{loss:.3f}" for loss in losses)


def report(lines: list[Line], console: Console) -> None:
    """Print a table for each size."""
    for size, own in sizes(lines).items():
        width, layers, length, batch, steps, text = size
        title = (
            f"width {width}, {layers} layers, {steps} steps of {batch} x {length} bytes of text {text}: "
            f"{len(own)} runs; * the best rate tried is the lowest or the highest"
        )
        table = Table(title=title)
        for head in (*HEADS, "minus AdamW"):
            table.add_column(head, justify="left" if head == HEADS[0] else "right")
        for standing in standings(own):
            table.add_row(*cells(standing, standing.method, against(standing)))
        console.print(table)


def short(method: str) -> str:
    """A method's name without marks and explanations."""
    return NAMES[method].replace("`", "").partition(" (")[0]


def markdown(lines: list[Line], base: str = "adamw") -> str:
    """The table of lines of one size as the page has it; what is beyond two standard errors in bold."""
    rows = [
        cells(standing, NAMES[standing.method], against(standing, bold="**"))
        for standing in standings(lines, base)
    ]
    head, *listed = (f"| {' | '.join(row)} |" for row in ([*HEADS, f"minus {short(base)}"], *rows))
    return "\n".join([head, "|---|---:|---:|---:|---|---:|---|", *listed])


def markdown_at_adamws_rate(lines: list[Line]) -> str:
    """The table, a row a size, of AdamW at its best rate and of what `AT_ADAMWS_RATE` says does well at that rate."""
    methods = [method for method in AT_ADAMWS_RATE if method != "adamw"]
    heads = ["width", "steps", "text", "rate", "AdamW"]
    heads += [head for method in methods for head in (NAMES[method], "minus AdamW")]
    rows = []
    for size, own in sorted(sizes(lines).items()):
        found = {standing.method: standing for standing in standings(at_adamws_rate(own))}
        adamw = found["adamw"]
        row = [str(size[0]), str(size[4]), "Python" if size[5] == TEXT else "English"]
        row += [f"{adamw.lr:.2g}", f"{adamw.mean:.3f}"]
        for method in methods:
            row += [f"{found[method].mean:.3f}", against(found[method], bold="**")]
        rows.append(row)
    head, *listed = (f"| {' | '.join(row)} |" for row in (heads, *rows))
    return "\n".join([head, f"|{'---:|' * len(heads)}", *listed])
