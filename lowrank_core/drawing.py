"""Pictures of diagnostics, drawn on the axes that they are given: no library of pictures is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowrank_core.rules.diagnostics import MatrixDiagnostics

# Matrices up to which each is named beside its line.
_NAMED = 8


def draw_energy(axes: Any, rows: Iterable[MatrixDiagnostics]) -> None:
    """Draw over the steps which share of each matrix's gradient its columns hold.

    Parameters
    ----------
    axes
        Axes of Matplotlib.
    rows
        Rows of `diagnostics`, of several calls one after the other; those that come twice count once.

    Raises
    ------
    ValueError
        If there are none.
    """
    lines = _by_name(rows)
    for place, (name, own) in enumerate(lines.items()):
        shade = place / max(1, len(lines) - 1)
        axes.plot(
            [row.step for row in own],
            [row.captured for row in own],
            color=(0.0 + 0.84 * shade, 0.45 - 0.08 * shade, 0.70 * (1 - shade)),
            linewidth=1.4,
            marker="o" if len(own) == 1 else "",
            label=name if len(lines) <= _NAMED or place in (0, len(lines) - 1) else None,
        )
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel("share of the gradient's energy held")
    axes.legend(frameon=False, fontsize="small")


def draw_columns(axes: Any, rows: Iterable[MatrixDiagnostics], name: str) -> None:
    """Draw which basis columns one matrix has chosen at each step that was measured: a map, a column a row of it.

    Parameters
    ----------
    axes
        Axes of Matplotlib.
    rows
        As in `draw_energy`.
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
    axes.imshow(
        chosen,
        origin="lower",
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1.4,
        interpolation="nearest",
    )
    shown = range(0, len(own), max(1, -(-len(own) // 6)))
    axes.set_xticks(list(shown), [str(own[place].step) for place in shown])
    axes.set_xlabel("step")
    axes.set_ylabel(f"basis column of {name}")


def _by_name(rows: Iterable[MatrixDiagnostics]) -> dict[str, list[MatrixDiagnostics]]:
    """Return the rows of each matrix in the order of steps, each step once."""
    found: dict[str, dict[int, MatrixDiagnostics]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.step] = row
    if not found:
        raise ValueError("rows must be those of diagnostics, got none; is recording switched on?")
    return {name: [own[step] for step in sorted(own)] for name, own in found.items()}
