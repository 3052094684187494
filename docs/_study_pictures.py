"""Pictures of the study: what optimizers reach for the state they keep, and on the way there."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _picture_style import CHOSEN, EITHER
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).with_name("examples")))
import _study_table as study_table

DOCS = Path(__file__).parent
#: Of the study's methods those that pictures show, and what they have room to call them.
OURS = {
    "sign": "plain rule",
    "factored": "DCT-AdamW",
    "factored, 8 bits": "tiny",
    "best": "Trion, best",
}
OTHERS = {
    "adamw": "AdamW",
    "muon": "Muon",
    "foam": "FOAM",
    "galore": "GaLore",
    "fira": "Fira",
    "ldadam": "LDAdam",
    "apollo": "APOLLO",
    "dion": "Dion",
    "scale": "SCALE",
}
#: The seed of runs that were made one after the other, for their times.
TIMED_SEED = 8


def lines_of_study() -> dict[tuple[object, ...], list[study_table.Line]]:
    """The lines on Python's sources of methods that pictures show, by size, smallest first."""
    every = study_table.read(DOCS / "results" / "study.jsonl")
    shown = [
        line
        for line in every
        if line["text"] == study_table.TEXT and line["method"] in (*OURS, *OTHERS)
    ]
    return dict(sorted(study_table.sizes(shown).items()))


def legible(axes: Axes) -> None:
    """Ink for white and black alike."""
    axes.tick_params(which="both", colors=EITHER, labelcolor=EITHER)
    axes.xaxis.label.set_color(EITHER)
    axes.yaxis.label.set_color(EITHER)


def frontier() -> Figure:
    """Loss against bytes of state on the study's sizes, each method a point with its spread over seeds."""
    found = {
        size: [s for s in study_table.standings(own) if len(s.runs) > 2]
        for size, own in lines_of_study().items()
    }
    figure = Figure(figsize=(3.9 * len(found), 3.9), facecolor="none")
    for place, (size, standings) in enumerate(found.items()):
        axes = figure.add_axes(
            ((place + 0.16) / len(found), 0.14, 0.8 / len(found), 0.74), facecolor="none"
        )
        width, _, length, batch, steps, _ = size
        axes.set_title(f"width {width}, {steps} steps of {batch} x {length}", color=EITHER)
        # Names of neighbours one above the other.
        gap = 0.035 * np.ptp([loss for s in standings for loss in s.losses])
        tops = dict.fromkeys((True, False), -np.inf)
        for standing in standings:
            ours = standing.method in OURS
            ink = CHOSEN if ours else EITHER
            state = standing.state_bytes / 1e6
            axes.vlines(state, min(standing.losses), max(standing.losses), color=ink, linewidth=1)
            axes.scatter(state, standing.mean, color=ink, s=26, zorder=3)
            # This library's to the left of their points, the others to the right.
            tops[ours] = max(standing.mean, tops[ours] + gap)
            axes.text(
                state / 1.08 if ours else 1.08 * state, tops[ours],
                (OURS | OTHERS)[standing.method],
                ha="right" if ours else "left", va="center", color=ink, fontsize=8.5,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.6)
        low, high = axes.get_xlim()
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50) if low <= tick <= high]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("optimizer state, MB")
        if place == 0:
            axes.set_ylabel("validation loss")
        legible(axes)
    return figure


def curves() -> Figure:
    """Training loss of the smallest model against bytes read and against time, of the runs of `TIMED_SEED`."""
    own = next(iter(lines_of_study().values()))
    runs = {line["method"]: line for line in own if line["seed"] == TIMED_SEED}
    figure = Figure(figsize=(9.2, 3.6), facecolor="none")
    inks = colormaps["tab10"]
    units: dict[str, Callable[[study_table.Line], float]] = {
        "thousand bytes read": lambda line: line["batch"] * line["length"],
        "seconds, one thread": lambda line: line["ms_per_step"],
    }
    for place, (label, per_step) in enumerate(units.items()):
        axes = figure.add_axes((0.07 + 0.49 * place, 0.15, 0.42, 0.8), facecolor="none")
        for number, (method, line) in enumerate(runs.items()):
            count = len(line["curve"])
            # Each number is the mean of its stretch: its place is the middle.
            steps = (np.arange(count) + 0.5) * line["steps"] / count
            axes.plot(
                steps * per_step(line) / 1e3, line["curve"], color=inks(number), linewidth=1.4,
                linestyle="-" if method in OURS else "--", label=(OURS | OTHERS)[method],
            )  # fmt: skip
        axes.set_ylim(top=3.0)
        axes.set_xlabel(label)
        if place == 0:
            axes.set_ylabel("training loss")
            axes.legend(labelcolor=EITHER, fontsize=8.5, ncols=2)
        legible(axes)
    return figure
