"""What a part of the benchmarks finds, tables and targets: as JSON, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

Cell = str | float | None

NOTHING = "-"
#: What values of a unit are multiplied by to be shown, and what stands behind them.
UNITS = {
    "ms": (1e3, ""),
    "s": (1, ""),
    "x": (1, " x"),
    "MB": (1e-6, ""),
    "number": (1, ""),
    "count": (1, ""),
}


@dataclass(frozen=True)
class Column:
    """Heading and unit (a key of `UNITS`, or empty for text) of a column."""

    title: str
    unit: str = ""


@dataclass
class Table:
    """Rows of text and of numbers in SI units; ``None`` where there is no number."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Cell) -> None:
        """Append a row."""
        if len(cells) != len(self.columns):
            raise ValueError(
                f"a row of {self.name} must have {len(self.columns)} cells, got {cells}"
            )
        self.rows.append(list(cells))

    def lines(self) -> list[list[str]]:
        """Every cell as text."""
        units = [column.unit for column in self.columns]
        return [
            [shown(cell, unit) for cell, unit in zip(row, units, strict=True)] for row in self.rows
        ]


@dataclass
class Target:
    """A ratio that should not be above (or, with ``at_least``, below) a limit."""

    name: str
    limit: float
    value: float | None
    at_least: bool = False
    #: Why there is no value.
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is met, if it was measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def cells(self) -> list[str]:
        """Name, limit, value and verdict as text."""
        verdict = {True: "met", False: "not met", None: "not measured"}[self.met]
        if self.value is None and self.remark:
            verdict = f"{verdict}: {self.remark}"
        sign = "≥" if self.at_least else "≤"
        return [
            self.name,
            f"{sign} {significant(self.limit)}",
            shown(self.value, "number"),
            verdict,
        ]


TARGET_HEADINGS = ("target", "limit", "measured", "")


@dataclass
class Findings:
    """What one part found."""

    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it; targets say whether they are met."""
        targets = [{**asdict(target), "met": target.met} for target in self.targets]
        return {"tables": [asdict(table) for table in self.tables], "targets": targets}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Findings:
        """Return what `as_json` was given."""
        tables = [
            Table(**{**table, "columns": [Column(**column) for column in table["columns"]]})
            for table in content["tables"]
        ]
        targets = [
            Target(**{key: value for key, value in target.items() if key != "met"})
            for target in content["targets"]
        ]
        return cls(tables, targets)


def significant(value: float) -> str:
    """Return a number with three significant digits, without an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    decimals = 2 if size >= 1 else 3
    if size >= 10:
        decimals = 1
    return f"{value:.{decimals}f}"


def shown(cell: Cell, unit: str) -> str:
    """Return a cell as text."""
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        return cell
    if unit == "count":
        return f"{cell:.0f}"
    scale, suffix = UNITS[unit]
    return significant(cell * scale) + suffix


def print_findings(findings: Findings, console: Console) -> None:
    """Print the tables and the targets."""
    for table in findings.tables:
        drawn = RichTable(title=table.title, caption=table.note or None, title_justify="left")
        for column in table.columns:
            drawn.add_column(column.title, justify="right" if column.unit else "left")
        for line in table.lines():
            drawn.add_row(*line)
        console.print(drawn)
    if findings.targets:
        drawn = RichTable(title="Targets", title_justify="left")
        for heading in TARGET_HEADINGS:
            drawn.add_column(heading)
        for target in findings.targets:
            style = {True: "green", False: "red", None: "yellow"}[target.met]
            *cells, verdict = target.cells()
            drawn.add_row(*cells, f"[{style}]{verdict}[/{style}]")
        console.print(drawn)


def markdown_table(
    headings: Sequence[str], numbers: Sequence[bool], lines: Iterable[list[str]]
) -> str:
    """Return a Markdown table, columns of numbers aligned to the right."""
    rule = ["---:" if number else "---" for number in numbers]
    rows = [list(headings), rule, *lines]
    return "".join("| " + " | ".join(row).replace("|  |", "| |") + " |\n" for row in rows)


def markdown(findings: Findings) -> str:
    """Return tables and targets in Markdown."""
    parts = []
    for table in findings.tables:
        titles = [column.title for column in table.columns]
        numbers = [bool(column.unit) for column in table.columns]
        parts.append(f"**{table.title}**\n\n" + markdown_table(titles, numbers, table.lines()))
        if table.note:
            parts.append(f"{table.note}\n")
    if findings.targets:
        lines = [target.cells() for target in findings.targets]
        parts.append(markdown_table(TARGET_HEADINGS, (False, True, True, False), lines))
    return "\n".join(parts)
