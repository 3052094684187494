"""Pictures of what an optimizer's `diagnostics` returned; needs Matplotlib."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.figure import Figure

from lowrank_core import MatrixDiagnostics
from lowrank_core.drawing import draw_columns, draw_energy

__all__ = ["columns", "energy"]


def energy(rows: Iterable[MatrixDiagnostics]) -> Figure:
    """Return a picture of the share of each matrix's gradient that its columns hold, over the steps.

    Parameters
    ----------
    rows
        Rows of `diagnostics`, those of several calls one after the other.

    Raises
    ------
    ValueError
        If there are none.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    draw_energy(figure.subplots(), rows)
    return figure


def columns(rows: Iterable[MatrixDiagnostics], name: str) -> Figure:
    """Return a map of the basis columns that one matrix has chosen, over the steps.

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
    figure = Figure(figsize=(7, 4), layout="constrained")
    draw_columns(figure.subplots(), rows, name)
    return figure
