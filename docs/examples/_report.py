"""What a run shows while it works and when it is done: progress, a table, a picture, a file.

Knows nothing of the framework that trains, so that every framework's example reports alike.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

# Okabe and Ito's colours, told apart by colour-blind readers too, darkest first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
INK, FAINT = "#333333", "#bbbbbb"


@dataclass
class Run:
    """What one optimizer has done so far; plain numbers only, so that it can be saved anywhere."""

    optimizer: str
    label: str
    learning_rate: float
    training: list[float] = field(default_factory=list)
    """Loss of each step, nats per byte."""
    validation: list[tuple[int, float]] = field(default_factory=list)
    """Steps done, and the loss on the held-out windows then."""
    optimizer_seconds: list[float] = field(default_factory=list)
    """Duration of each `optimizer.step()` alone."""
    seconds: float = 0.0
    """Total time, validation included."""
    state_bytes: int = 0
    """Size of the optimizer's state."""

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.training)

    @property
    def loss(self) -> float:
        """The last validation loss, nats per byte."""
        return self.validation[-1][1]

    @property
    def optimizer_ms(self) -> float:
        """Median duration of one optimizer step in milliseconds."""
        return 1e3 * statistics.median(self.optimizer_seconds)


def tell_apart(runs: Sequence[Run]) -> None:
    """Add the learning rate to the labels of optimizers that run more than once."""
    often = Counter(run.label for run in runs)
    for run in runs:
        if often[run.label] > 1:
            run.label = f"{run.label} at {run.learning_rate:g}"


class LiveReport:
    """A progress bar for each run; without a terminal, a line at each validation instead."""

    def __init__(
        self, runs: Sequence[Run], *, steps: int, tokens_per_step: int, console: Console
    ) -> None:
        self.steps, self.tokens_per_step, self.console = steps, tokens_per_step, console
        self.width = max(len(run.label) for run in runs)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {
            run.label: self.bars.add_task(
                run.label, total=steps, completed=run.step, figures=self._figures(run)
            )
            for run in runs
        }

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def show(self, run: Run) -> None:
        """Report a run after a step."""
        if self.console.is_terminal:
            self.bars.update(self.tasks[run.label], completed=run.step, figures=self._figures(run))
        elif run.validation and run.validation[-1][0] == run.step:
            self.console.print(
                f"{run.label:<{self.width}}  step {run.step:>{len(str(self.steps))}}/{self.steps}"
                f"  {self._figures(run)}  validation {run.loss:.3f}",
                soft_wrap=True,
            )

    def _figures(self, run: Run) -> str:
        if not run.training:
            return "waiting"
        speed = self.tokens_per_step * run.step / run.seconds
        left = round((self.steps - run.step) * run.seconds / run.step)
        loss = statistics.fmean(run.training[-10:])
        return f"loss {loss:.3f}  {speed:,.0f} tokens/s  {left // 60}:{left % 60:02d} left"


def table(runs: Sequence[Run]) -> Table:
    """The runs side by side."""
    result = Table(title="Byte-level language model")
    result.add_column("optimizer")
    for heading in ("learning\nrate", "validation\nloss", "optimizer\nstate MB"):
        result.add_column(heading, justify="right")
    result.add_column("optimizer\nms / step", justify="right")
    result.add_column("total\ntime s", justify="right")
    for run in runs:
        megabytes = f"{run.state_bytes / 1e6:.1f}"
        if run is not runs[0]:
            megabytes += f" ({_share(run, runs)})"
        result.add_row(
            run.label,
            f"{run.learning_rate:g}",
            f"{run.loss:.3f}",
            megabytes,
            f"{run.optimizer_ms:.1f}",
            f"{run.seconds:.0f}",
        )
    return result


def draw(path: Path, runs: Sequence[Run], caption: str) -> None:
    """Write the loss curves, and the size of each optimizer's state, as a picture."""
    figure = Figure(figsize=(10.5, 5), dpi=150, layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.12, h_pad=0.1, rect=(0, 0.05, 1, 0.95))  # room for the caption
    losses, states = figure.subplots(1, 2, width_ratios=(3, 1.15))
    for axes in (losses, states):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, length=0)
    _draw_losses(losses, runs)
    _draw_states(states, runs)
    figure.text(0.012, 0.02, caption, fontsize=8.5, color="#666666")
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix.removeprefix("."))


def _draw_losses(axes: Axes, runs: Sequence[Run]) -> None:
    steps = max(run.step for run in runs)
    window = max(1, steps // 20)
    shown: list[float] = []
    for run, colour in _coloured(runs):
        training = np.asarray(run.training)
        axes.plot(np.arange(1, run.step + 1), training, color=colour, alpha=0.13, linewidth=0.8)
        smooth = np.convolve(training, np.full(window, 1 / window), mode="valid")
        at = np.arange(len(smooth)) + (window + 1) / 2
        axes.plot(at, smooth, color=colour, linewidth=1.8)
        axes.plot(
            *np.transpose(run.validation),
            color=colour,
            linestyle="none",
            marker="o",
            markersize=5.5,
            markeredgecolor="white",
            zorder=3,
            clip_on=False,
        )
        shown.extend(smooth[len(smooth) // 12 :])
        shown.extend(loss for step, loss in run.validation if step > steps / 10)
    lowest, highest = min(shown), max(shown)
    margin = 0.05 * (highest - lowest) or 0.1
    axes.set_ylim(lowest - margin, highest + margin)
    axes.set_xlim(0, steps)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_title("Loss, nats per byte", loc="left", fontsize=11, color=INK)
    axes.set_xlabel("step", color=INK)
    axes.plot(
        [],
        [],
        color="#666666",
        linewidth=1.8,
        label=f"training, mean of {window} steps" if window > 1 else "training",
    )
    axes.plot([], [], "o", color="#666666", markersize=5.5, label="held-out text")
    axes.legend(frameon=False, loc="upper right", labelcolor=INK, fontsize=9)
    heights = _apart([run.loss for run in runs], 0.055 * (highest - lowest + 2 * margin))
    for (run, colour), height in zip(_coloured(runs), heights, strict=True):
        axes.annotate(
            f"{run.label}  {run.loss:.3f}",
            (1.015, height),
            xycoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )


def _draw_states(axes: Axes, runs: Sequence[Run]) -> None:
    for row, (run, colour) in enumerate(_coloured(runs)):
        megabytes = run.state_bytes / 1e6
        axes.barh(row, megabytes, height=0.62, color=colour)
        share = f" ({_share(run, runs)})" if row else ""
        axes.annotate(
            f" {megabytes:.1f}{share}",
            (megabytes, row),
            color=colour,
            va="center",
            fontweight="bold",
        )
    axes.set_yticks(range(len(runs)), [run.label for run in runs])
    axes.set_ylim(max(len(runs), 4) - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * max(run.state_bytes for run in runs) / 1e6 or 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Optimizer state, MB", loc="left", fontsize=11, color=INK)


def _share(run: Run, runs: Sequence[Run]) -> str:
    """The state of a run as a part of the first one's."""
    return f"{run.state_bytes / runs[0].state_bytes:.0%}" if runs[0].state_bytes else "-"


def _coloured(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, COLOURS[index % len(COLOURS)]) for index, run in enumerate(runs)]


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move labels apart, each as little as the order allows, until none overlap."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Groups of touching labels, each as (indices, mean of the heights they want).
    groups: list[list[int]] = []

    def centre(group: list[int]) -> float:
        return statistics.fmean(heights[index] for index in group)

    for index in order:
        groups.append([index])
        while (
            len(groups) > 1
            and centre(groups[-1]) - centre(groups[-2])
            < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            last = groups.pop()
            groups[-1].extend(last)
    placed = list(heights)
    for group in groups:
        for place, index in enumerate(group):
            placed[index] = centre(group) + gap * (place - (len(group) - 1) / 2)
    return placed


def write_json(path: Path, runs: Sequence[Run], settings: dict[str, Any]) -> None:
    """Write everything the table and the picture are made of."""
    content = {
        "settings": settings,
        "runs": [
            asdict(run) | {"validation_loss": run.loss, "optimizer_ms": run.optimizer_ms}
            for run in runs
        ],
    }
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its name at the end: nobody reads half of it, and a full disk keeps none."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
