"""Pictures of what an optimizer's `diagnostics` returned; needs Matplotlib, which nothing else here imports."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank_core.rules.diagnostics import MatrixDiagnostics

__all__ = ["columns", "energy"]

# Matrices up to which each is a line; of more, each is a row of a map, and so many rows are named.
_NAMED, _LABELS = 8, 40
_SHARE = "share of the gradient's energy held"


def energy(rows: Iterable[MatrixDiagnostics]) -> Figure:
    """Return a picture of the share of each matrix's gradient that its columns hold, over the steps.

    Lines, or of many matrices a map.

    Parameters
    ----------
    rows
        Rows of `diagnostics`, of several calls one after the other; those that come twice count once.

    Raises
    ------
    ValueError
        If there are none.
    """
    lines = _by_name(rows)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    if len(lines) > _NAMED:
        _draw_map(figure.subplots(), lines)
    else:
        _draw_lines(figure.subplots(), lines)
    return figure


def _draw_lines(axes: Axes, lines: dict[str, list[MatrixDiagnostics]]) -> None:
    for name, own in lines.items():
        steps, shares = [row.step for row in own], [row.captured for row in own]
        axes.plot(steps, shares, linewidth=1.4, marker="o" if len(own) == 1 else "", label=name)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel(_SHARE)
    axes.legend(frameon=False, fontsize="small")


def _draw_map(axes: Axes, lines: dict[str, list[MatrixDiagnostics]]) -> None:
    """Draw a row for each matrix: of many, lines could not be told apart."""
    steps = sorted({row.step for own in lines.values() for row in own})
    shares = [
        [{row.step: row.captured for row in own}.get(step, float("nan")) for step in steps]
        for own in lines.values()
    ]
    image = axes.imshow(shares, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label=_SHARE)
    every = -(-len(lines) // _LABELS)
    axes.set_yticks(range(0, len(lines), every), list(lines)[::every], fontsize="x-small")
    _mark_steps(axes, steps)


def _mark_steps(axes: Axes, steps: list[int]) -> None:
    """Write the steps of a map below it, no more than there is room for."""
    shown = range(0, len(steps), -(-len(steps) // 6))
    axes.set_xticks(list(shown), [str(steps[place]) for place in shown])
    axes.set_xlabel("step")


def columns(rows: Iterable[MatrixDiagnostics], name: str) -> Figure:
    """Return a map of the basis columns that one matrix has chosen at each step that was measured.

    Parameters
    ----------
    rows
        As in `energy`.
    name
        The matrix, as its rows are called.

    Raises
    ------
    ValueError
        If there are no rows of that matrix, or they have no columns, as of a basis that is not fixed.
    """
    lines = _by_name(rows)
    if name not in lines:
        raise ValueError(f"name must be one of {', '.join(lines)}, got {name!r}")
    own = lines[name]
    size = 1 + max((column for row in own for column in row.columns), default=-1)
    if not size:
        raise ValueError(f"name must be of a matrix with columns to choose from, got {name!r}")
    chosen = [[0.0] * len(own) for _ in range(size)]
    for place, row in enumerate(own):
        for column in row.columns:
            chosen[column][place] = 1.0
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        chosen,
        origin="lower",
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1.4,
        interpolation="nearest",
    )
    _mark_steps(axes, [row.step for row in own])
    axes.set_ylabel(f"basis column of {name}")
    return figure


def _by_name(rows: Iterable[MatrixDiagnostics]) -> dict[str, list[MatrixDiagnostics]]:
    """Return the rows of each matrix in the order of steps, each step once."""
    found: dict[str, dict[int, MatrixDiagnostics]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.step] = row
    if not found:
        raise ValueError("rows must be those of diagnostics, got none; is recording switched on?")
    return {name: [own[step] for step in sorted(own)] for name, own in found.items()}
