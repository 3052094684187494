"""Draw the pictures of the pages and of README.md, from the library itself.

    python docs/pictures.py [FOLDER]

writes them into FOLDER, by default `docs/_static`. Nothing is random from run to run, and a test
compares what this script draws with what is committed, so the pictures cannot go stale.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from _picture_style import (
    BLUE,
    CHOSEN,
    DIVERGING,
    EITHER,
    GREEN,
    INK,
    OTHER,
    PALE,
    QUIET,
    STYLE,
    bare,
)
from _study_pictures import curves, frontier
from lowrank_torch import plot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

import lowrank_core

FOLDER = Path(__file__).with_name("_static")


def basis() -> Figure:
    """The DCT basis as a matrix, and its first vectors as samples of cosines."""
    size = 16
    figure = Figure(figsize=(9.2, 3.9))
    matrix = lowrank_core.dct_matrix(size, xp=np, dtype=np.float64)

    axes = figure.add_axes((0.05, 0.12, 0.36, 0.78))
    limit = np.abs(matrix).max()
    axes.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit)
    axes.set_title(f"The basis Q for n = {size}")
    axes.set_xticks([0, 5, 10, 15])
    axes.set_yticks([0, 5, 10, 15])
    axes.set_xlabel("frequency j (one basis vector a column)")
    axes.set_ylabel("sample i")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)

    shown = (0, 1, 2, 3, 8, 15)
    samples, fine = np.arange(size), np.linspace(-0.5, size - 0.5, 800)
    top, height = 0.90, 0.80 / len(shown)
    for place, j in enumerate(shown):
        axes = figure.add_axes((0.52, top - height * (place + 1), 0.45, height * 0.86))
        bare(axes)
        axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
        scale = np.sqrt((1 if j == 0 else 2) / size)
        axes.plot(fine, scale * np.cos(np.pi * j * (2 * fine + 1) / (2 * size)), color=PALE)
        values = matrix[:, j]
        axes.vlines(samples, 0, values, color=INK, linewidth=1, zorder=2)
        colours = DIVERGING((values / limit + 1) / 2)
        axes.scatter(samples, values, c=colours, s=34, edgecolors=INK, linewidths=0.6, zorder=3)
        axes.set_xlim(-0.8, size - 0.2)
        axes.set_ylim(-0.46, 0.46)
        axes.text(-1.1, 0, f"j = {j}", ha="right", va="center")
        if place == 0:
            axes.set_title("Some of its columns: samples of cosines")
    return figure


def example_gradient(rows: int = 64, size: int = 48) -> np.ndarray:
    """A made-up gradient: each row a few shared waves of its own strength, plus noise."""
    random = np.random.default_rng(4)
    place = (np.arange(size) + 0.5) / size
    shared = ((0.9, 0.1), (1.6, 0.4), (4.2, 0.7), (8.5, 0.2), (13.0, 0.0), (21.0, 0.25))
    waves = [np.sin(2 * np.pi * (f * place + p)) for f, p in shared]
    strengths = random.standard_normal((rows, len(waves))) * (1.1, 0.8, 0.7, 0.55, 0.5, 0.4)
    return strengths @ np.stack(waves) + 0.25 * random.standard_normal((rows, size))


def heat(axes: Axes, matrix: np.ndarray, limit: float, title: str, below: str) -> None:
    """Show a matrix with its name above and what it is below."""
    axes.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    bare(axes)
    axes.set_title(title)
    axes.set_xlabel(below, labelpad=6)


def choosing() -> Figure:
    """From a gradient to its coefficients, their energies, the choice, and what the choice keeps."""
    gradient, rank = example_gradient(), 12
    rows, size = gradient.shape
    coefficients = lowrank_core.dct(gradient)
    scores = lowrank_core.column_scores(coefficients)
    chosen = lowrank_core.select_columns(scores, rank)
    low_rank = lowrank_core.project(gradient, chosen)
    kept = lowrank_core.lift(low_rank, chosen, size)
    energy = np.square(scores) / np.sum(np.square(scores))
    share = float(np.sum(energy[chosen]))

    figure = Figure(figsize=(9.2, 5.6))
    top, height = 0.565, 0.355
    lefts, width = (0.04, 0.375, 0.71), 0.25
    heat(
        figure.add_axes((lefts[0], top, width, height)),
        gradient,
        3.0,
        "1  The gradient G",
        f"m = {rows} rows, n = {size} columns",
    )
    coefficient_axes = figure.add_axes((lefts[1], top, width, height))
    heat(coefficient_axes, coefficients, 4.0, "2  Its coefficients S = G Q", "")
    heat(
        figure.add_axes((lefts[2], top, width, height)),
        kept,
        3.0,
        "4  What the choice keeps",
        f"{share:.0%} of the energy of G",
    )
    for left, text in zip(lefts[1:], ("DCT of\neach row", "chosen\ncolumns\nback"), strict=True):
        x, y = left - 0.0425, top + height / 2
        figure.text(x, y + 0.012, text, ha="center", va="bottom", fontsize=8)
        figure.text(x, y, "\u27f6", ha="center", va="top", fontsize=17, color=QUIET)

    axes = figure.add_axes((lefts[1], 0.10, width, 0.36))
    colours = [CHOSEN if j in chosen else OTHER for j in range(size)]
    axes.bar(range(size), energy, width=0.85, color=colours)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_xticks([0, 12, 24, 36, 47])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"3  Column energies: {rank} are chosen")
    axes.xaxis.label.set_fontweight("bold")
    for j in chosen:
        line = ConnectionPatch(
            (j, rows - 0.5),
            (j, energy[j]),
            coefficient_axes.transData,
            axes.transData,
            color=CHOSEN,
            linewidth=0.7,
            alpha=0.4,
        )
        figure.add_artist(line)

    kept_by_rank(figure.add_axes((lefts[0] + 0.03, 0.10, width - 0.03, 0.31)), gradient, rank)
    stored(figure.add_axes((lefts[2], 0.04, width, 0.37)), rows, size, rank)
    return figure


def kept_by_rank(axes: Axes, gradient: np.ndarray, rank: int) -> None:
    """The energy that the best r columns keep, in three bases, above the bound r / n."""
    size = gradient.shape[1]
    total = np.sum(np.square(gradient))
    ranks = np.arange(size + 1)
    bases = (("dct", CHOSEN, "DCT"), ("random", BLUE, "random"), ("identity", GREEN, "identity"))
    for name, colour, label in bases:
        everything = np.arange(size, dtype=np.int32)
        coefficients = lowrank_core.project(gradient, everything, basis=name)
        energies = np.sort(np.sum(np.square(coefficients), axis=0))[::-1]
        kept = np.concatenate([[0.0], np.cumsum(energies)]) / total
        axes.plot(ranks, kept, color=colour, label=label, linewidth=1.6)
    axes.plot(ranks, ranks / size, color=QUIET, linestyle=(0, (3, 2)), label="bound r / n")
    axes.axvline(rank, color=PALE, zorder=0)
    axes.set_xlim(0, size)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([0, rank, size], ["0", f"r = {rank}", f"n = {size}"])
    axes.set_yticks([0, 0.5, 1], ["0", "\u00bd", "1"])
    axes.set_title("Energy kept by the best r")
    axes.legend(loc="lower right", fontsize=8, handlelength=1.5, borderaxespad=0.2)


def stored(axes: Axes, rows: int, size: int, rank: int) -> None:
    """What AdamW and DCT-AdamW keep for this matrix, drawn to scale."""
    bare(axes)
    axes.set_title("What the optimizer keeps")
    gap, low = 10, 0.0
    upper = low + rows + 34
    for left in (0, size + gap):
        axes.add_patch(Rectangle((left, upper), size, rows, facecolor=PALE))
    for left, name in ((0.5 * size, "mean"), (1.5 * size + gap, "mean\nsquare")):
        axes.text(left, upper + rows / 2, name, ha="center", va="center", fontsize=8.5)
    adamw = f"AdamW: 2 m n = {2 * rows * size} numbers"
    axes.text(0, upper - 4, adamw, va="top", fontsize=8.5)
    for left in (0, rank + gap):
        axes.add_patch(Rectangle((left, low), rank, rows, facecolor=CHOSEN))
    left = 2 * (rank + gap)
    axes.add_patch(Rectangle((left, low + rows - 2.5), rank, 2.5, facecolor=INK))
    axes.text(left + rank + 4, low + rows - 1, "the chosen columns", va="center", fontsize=8.5)
    ours = f"DCT-AdamW: 2 m r + r = {2 * rows * rank + rank}"
    axes.text(0, low - 4, ours, va="top", fontsize=8.5)
    axes.set_xlim(0, 2 * size + gap)
    axes.set_ylim(low - 16, upper + rows)
    axes.set_aspect("equal", anchor="NW")


def carrying() -> Figure:
    """The change of coordinates between two choices is a partial permutation."""
    size = 12
    previous = np.array([0, 1, 2, 5, 7, 9], dtype=np.int32)
    current = np.array([0, 1, 3, 5, 9, 10], dtype=np.int32)
    q = lowrank_core.dct_matrix(size, xp=np, dtype=np.float64)
    rotation = q[:, previous].T @ q[:, current]
    rank = len(previous)

    figure = Figure(figsize=(9.2, 3.3))
    axes = figure.add_axes((0.03, 0.08, 0.55, 0.78))
    bare(axes)
    axes.set_title("Moments move with their columns")
    axes.set_xlim(-3.4, rank * 1.5)
    axes.set_ylim(0.3, 5.6)
    rows = 4
    # The colour of a column says which basis vector it belongs to.
    colours = {int(j): DIVERGING(0.08 + 0.84 * j / (size - 1)) for j in range(size)}
    for top, columns, label in ((3.55, previous, "before"), (0.6, current, "after")):
        axes.text(-0.5, top + 0.65, f"moments\n{label}", ha="right", va="center")
        for place, j in enumerate(columns):
            new = label == "after" and j not in previous
            for row in range(rows):
                axes.add_patch(
                    Rectangle(
                        (place * 1.4, top + row * 0.33),
                        0.9,
                        0.31,
                        facecolor="white" if new else colours[int(j)],
                        edgecolor=INK if new else "white",
                        linewidth=0.6,
                        linestyle=(0, (2, 1.5)) if new else "-",
                    )
                )
                if new:
                    middle = (place * 1.4 + 0.45, top + row * 0.33 + 0.155)
                    axes.text(*middle, "0", ha="center", va="center", fontsize=8)
            place_of_label = top + 1.55 if label == "before" else top - 0.06
            side = "bottom" if label == "before" else "top"
            gone = label == "before" and j not in current
            axes.text(
                place * 1.4 + 0.45,
                place_of_label,
                f"{j}",
                ha="center",
                va=side,
                color=QUIET if gone else INK,
                fontweight="normal" if gone else "bold",
                fontsize=9,
            )
    for place, j in enumerate(previous):
        start = (place * 1.4 + 0.45, 3.5)
        if j in current:
            end = (int(np.flatnonzero(current == j)[0]) * 1.4 + 0.45, 2.02)
            arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
        else:
            axes.text(start[0], 3.4, "dropped", ha="center", va="top", fontsize=8, color=QUIET)
    axes.text(-0.5, 0.52, "column", ha="right", va="top", fontsize=9)
    axes.text(-0.5, 5.12, "column", ha="right", va="bottom", fontsize=9)

    axes = figure.add_axes((0.67, 0.08, 0.28, 0.70))
    axes.imshow(np.abs(np.round(rotation, 9)), cmap=DIVERGING, vmin=-1, vmax=1)
    axes.set_xticks(range(rank), [str(j) for j in current])
    axes.set_yticks(range(rank), [str(j) for j in previous])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for line in np.arange(rank + 1) - 0.5:
        axes.axhline(line, color="white", linewidth=1.5)
        axes.axvline(line, color="white", linewidth=1.5)
    for i in range(rank):
        for j in range(rank):
            one = abs(rotation[i, j]) > 0.5
            axes.text(
                j,
                i,
                "1" if one else "0",
                ha="center",
                va="center",
                color="white" if one else PALE,
                fontweight="bold" if one else "normal",
            )
    axes.set_title(r"$R = Q_{\mathrm{prev}}^{\top}\, Q_{\mathrm{new}}$", pad=24)
    return figure


def newcomer_sizes(correction: str, steps: int) -> np.ndarray:
    """Root mean square of the update of a column from the step on at which it is chosen.

    White noise in two columns of the identity basis, of which one is kept. The state is that of a
    run long under way with the other column chosen.
    """
    random = np.random.default_rng(0)
    config = lowrank_core.DCTAdamWConfig(
        rank=1, betas=(0.9, 0.999), basis="identity", bias_correction=correction
    )
    rows = 4000
    state = lowrank_core.dct_adamw_init((rows, 2), config, xp=np)
    state = state._replace(step=20_000)
    if state.energy is not None:
        state = state._replace(energy=np.ones_like(state.energy))
    sizes = []
    for _ in range(steps):
        gradient = random.standard_normal((rows, 2)).astype(np.float32) * np.float32([0.9, 1.0])
        update, state = lowrank_core.dct_adamw_step(gradient, state, config)
        assert list(update.indices) == [1]
        sizes.append(float(np.sqrt(np.mean(np.square(update.factor)))))
    return np.array(sizes)


def newcomers() -> Figure:
    """How large the steps of a newly chosen column are under the three corrections."""
    steps = 60
    figure = Figure(figsize=(9.2, 3.4))
    axes = figure.add_axes((0.07, 0.16, 0.90, 0.72))
    shown = {
        "step": (CHOSEN, (2.0, 3.1)),
        "column": (BLUE, (1.9, 1.0)),
        "gentle": (GREEN, (12.5, 0.42)),
    }
    for correction, (colour, place) in shown.items():
        sizes = newcomer_sizes(correction, steps)
        axes.plot(range(1, steps + 1), sizes, color=colour, marker="o", markersize=3, linewidth=1.6)
        text = f'"{correction}": first step {sizes[0]:.2g}'
        axes.text(*place, text, color=colour, fontweight="bold")
    settled = np.sqrt((1 - 0.9) / (1 + 0.9))
    axes.axhline(settled, color=QUIET, linestyle=(0, (3, 2)), linewidth=1, zorder=0)
    text = f"a settled column: {settled:.2f}"
    axes.text(steps, settled - 0.05, text, ha="right", va="top", color=QUIET, fontsize=9)
    axes.set_xlim(0.2, steps + 0.8)
    axes.set_ylim(0, 3.5)
    axes.set_xticks([1, 10, 20, 30, 40, 50, 60])
    axes.set_xlabel("steps since the column was chosen")
    axes.set_ylabel("size of its update")
    axes.set_title("A newcomer's updates, late in a run (white noise, betas 0.9 and 0.999)")
    return figure


def state() -> Figure:
    """Optimizer state of a 7B Llama, in ink that can be read on white and on black."""
    hidden = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    others = 2 * 32000 * 4096 + 65 * 4096
    weights = 32 * sum(m * n for m, n in hidden) + others

    def gigabytes(config: lowrank_core.DCTAdamWConfig | lowrank_core.TrionConfig) -> float:
        low_rank = 32 * sum(lowrank_core.state_bytes(shape, config) for shape in hidden)
        return (low_rank + 8 * others) / 1e9

    adamw, trion = lowrank_core.DCTAdamWConfig, lowrank_core.TrionConfig
    factored, tiny = lowrank_core.PRESETS["factored"], lowrank_core.PRESETS["tiny"]
    best = lowrank_core.TRION_PRESETS["best"]
    bars = {
        "AdamW": 8 * weights / 1e9,
        "Muon": (4 * (weights - others) + 8 * others) / 1e9,
        "Trion, best": gigabytes(trion(rank=1.0, **best)),
        "DCT-AdamW": gigabytes(adamw(rank=0.25, **factored)),
        "DCT-AdamW, rank 512": gigabytes(adamw(rank=512, **factored)),
        "DCT-AdamW, tiny": gigabytes(adamw(rank=0.25, **tiny)),
    }
    ink = EITHER
    figure = Figure(figsize=(6.4, 2.6), facecolor="none")
    axes = figure.add_axes((0.29, 0.04, 0.60, 0.82), facecolor="none")
    bare(axes)
    for place, (name, size) in enumerate(bars.items()):
        axes.barh(place, size, height=0.7, color=ink if name in ("AdamW", "Muon") else CHOSEN)
        axes.text(size + 0.5, place, f"{size:.1f} GB", va="center", color=ink)
        axes.text(-0.6, place, name, ha="right", va="center", color=ink)
    axes.invert_yaxis()
    axes.set_title("Optimizer state of a 7B Llama, float32", color=ink)
    return figure


def recorded() -> list[lowrank_core.MatrixDiagnostics]:
    """The rows that `docs/examples/watch_steps.py` wrote."""
    text = (FOLDER.parent / "results" / "diagnostics.json").read_text(encoding="utf-8")
    rows = [{"columns": ()} | row for row in json.loads(text)]
    return [lowrank_core.MatrixDiagnostics(**row) for row in rows]


def energy() -> Figure:
    """What the columns hold of each matrix's gradient on the training job, in ink for white and black alike."""
    figure = plot.energy(recorded())
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.tick_params(colors=EITHER, labelcolor=EITHER)
        axes.xaxis.label.set_color(EITHER)
        axes.yaxis.label.set_color(EITHER)
    return figure


def columns() -> Figure:
    """The columns that one matrix of the training job chose."""
    rows = recorded()
    return plot.columns(rows, next(row.name for row in rows if row.columns))


PICTURES = {
    "basis": basis,
    "choosing": choosing,
    "carrying": carrying,
    "newcomers": newcomers,
    "state": state,
    "energy": energy,
    "columns": columns,
    "frontier": frontier,
    "curves": curves,
}


def draw(folder: Path) -> list[Path]:
    """Draw every picture into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        for name, make in PICTURES.items():
            paths.append(folder / f"{name}.png")
            make().savefig(paths[-1], metadata={"Software": None})
    return paths


if __name__ == "__main__":
    for written in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(written)
