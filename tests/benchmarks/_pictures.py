"""Pictures of what the benchmarks found, from the tables alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from _tables import Findings, Table, significant
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# The pages' colours and settings.
sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import _picture_style
from _picture_style import BLUE, GREEN, OTHER, QUIET
from _picture_style import CHOSEN as OURS

#: Smaller than the pages' other pictures have it.
STYLE: Any = {
    **_picture_style.STYLE,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlepad": 6,
    "savefig.dpi": 110,
}
Tables = Mapping[str, Table]


def _is_ours(name: str) -> bool:
    ours = ("DCT-AdamW", "Trion", "`dct`", "`idct`")
    return name.startswith(ours) and "paper" not in name


def _bars(axes: Axes, names: list[str], values: list[float], reference: float = 1.0) -> None:
    """Draw one bar a name on a logarithmic axis, from the reference to the value, the number at its end."""
    # Matplotlib would set what stands between dollar signs and backticks as it is.
    labels = [name.replace("`", "") for name in names]
    colours = [OURS if _is_ours(name) else OTHER for name in names]
    places = range(len(names))
    axes.barh(places, [value - reference for value in values], left=reference, color=colours)
    axes.set_xscale("log")
    low, high = min(*values, reference), max(*values, reference)
    axes.set_xlim(low / 1.15, high * (high / low) ** 0.16 * 1.1)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f" {significant(value)}",
            (max(value, reference), place),
            va="center",
            fontsize=8,
        )
    axes.axvline(reference, color=QUIET, linewidth=0.8)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def _measured(table: Table, name: int, value: int) -> tuple[list[str], list[float]]:
    rows = [row for row in table.rows if isinstance(row[value], float)]
    return [str(row[name]) for row in rows], [float(row[value] or 0) for row in rows]


def transform(tables: Tables) -> Figure:
    """The transforms of the largest matrix."""
    table = tables["transform"]
    size = table.rows[-1][0]
    largest = Table("", "", table.columns, [row for row in table.rows if row[0] == size])
    names, values = _measured(largest, 1, 3)
    figure = Figure(figsize=(7.4, 0.5 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    _bars(axes, names, values)
    axes.set_title(f"Transform of a {size:g} x {size:g} matrix, over a bare FFT")
    return figure


def models(tables: Tables) -> Figure:
    """A step of every optimizer on every model, over AdamW."""
    shown = [table for name, table in tables.items() if name.startswith("models-")]
    names = [str(row[0]) for row in shown[0].rows if isinstance(row[3], float)]
    rows = (len(shown) + 1) // 2
    height = 0.5 + rows * (0.5 + 0.24 * len(names))
    figure = Figure(figsize=(9.6, height), layout="constrained")
    for place, table in enumerate(shown):
        axes = figure.add_subplot(rows, min(2, len(shown)), place + 1)
        names, values = _measured(table, 0, 3)
        lacking = {str(row[0]) for row in table.rows if "without its refresh" in str(row[-1])}
        _bars(axes, [f"{name} *" if name in lacking else name for name in names], values)
        axes.set_title(table.title.split(":")[0])
    figure.suptitle(
        "Optimizer step over fused AdamW's, refreshes spread over their period (* without its refresh: not timed)",
        fontsize=10,
    )
    return figure


def scaling(tables: Tables) -> Figure:
    """Cost against rank, size and period."""
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    rank, size, period = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    lines = {1: ("DCT-AdamW", OURS), 3: ("the same by FFT", GREEN), 5: ("Trion", BLUE)}
    _curve(rank, tables["rank"], lines, scale=1e3)
    rank.set(title="by rank", xlabel="rank", ylabel="ms a step", yscale="log")
    lines = {1: ("DCT-AdamW", OURS), 2: ("Trion", BLUE), 3: ("AdamW (fused)", QUIET)}
    _curve(size, tables["size"], lines, scale=1e3)
    size.set(title="by size", xlabel="side of a square matrix", ylabel="ms a step", yscale="log")
    residuals = ("discard", "error feedback", "normalized")
    colours = (OURS, BLUE, GREEN)
    lines = {place + 1: pair for place, pair in enumerate(zip(residuals, colours, strict=True))}
    _curve(period, tables["period"], lines)
    period.set(title="by period", xlabel="refresh_every", ylabel="over AdamW", ylim=(0, None))
    return figure


def _curve(
    axes: Axes, table: Table, lines: Mapping[int, tuple[str, str]], scale: float = 1.0
) -> None:
    x = [float(row[0] or 0) for row in table.rows]
    for column, (label, colour) in lines.items():
        y = [float(row[column] or 0) * scale for row in table.rows]
        axes.plot(x, y, marker="o", markersize=3, color=colour, label=label)
    axes.set_xscale("log", base=2 if x[0] > 1 else 10)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(fontsize=8)


def memory(tables: Tables) -> Figure:
    """State, and what a step holds beside it."""
    table = tables["memory"]
    rows = [row for row in table.rows if isinstance(row[1], float)]
    names = [str(row[0]) for row in rows]
    state = [float(row[1] or 0) / 1e6 for row in rows]
    extra = [float(row[2] or 0) / 1e6 for row in rows]
    figure = Figure(figsize=(7.4, 1.1 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(names))
    axes.barh(places, state, color=BLUE, label="state")
    axes.barh(places, extra, left=state, color=OURS, label="more at the peak of a step")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(title="Memory of an optimizer, MB")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


#: Each picture, and the part whose tables it is made of.
PICTURES: dict[str, Callable[[Tables], Figure]] = {
    "transform": transform,
    "models": models,
    "scaling": scaling,
    "memory": memory,
}


def draw(results: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Draw every picture whose part was measured, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        for name, make in PICTURES.items():
            if name in results["parts"]:
                found = Findings.from_json(results["parts"][name])
                figure = make({table.name: table for table in found.tables})
                path = folder / f"{name}.png"
                drawn = BytesIO()
                figure.savefig(drawn, format="png")
                # A few colours and the shades between them: a palette holds them in a third of the bytes.
                Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
                yield path
