"""What the bench says: a JSON line on stdout for each figure as it comes, a table on stderr at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from empd.bench.figures import Figure


def write_line(figure: Figure, machine: dict[str, Any]) -> None:
    """One line, complete in itself."""
    line = msgspec.json.encode({**figure.as_line(), "machine": machine})
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


def write_table(figures: Sequence[Figure], machine: dict[str, Any]) -> None:
    """All figures for people."""
    table = Table(title=f"{machine['cores']} × {machine['cpu']}, Python {machine['python']}", title_justify="left")
    table.add_column("figure", no_wrap=True)
    for heading in ("value", "min", "max", "runs", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        line = figure.as_line()
        target = figure.target
        wanted = "" if target is None else f"{'≥' if target.at_least else '≤'} {_shown(target.value)}"
        colour = {True: "green", False: "red", None: ""}[figure.met]
        table.add_row(
            figure.name,
            f"{_shown(line['value'])} {figure.unit}",
            _shown(line["min"]),
            _shown(line["max"]),
            str(line["runs"]),
            f"[{colour}]{wanted}[/]" if colour else wanted,
        )
    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(table)


def progress(text: str) -> None:
    """One line on stderr: a measurement takes its time."""
    Console(stderr=True, highlight=False).print(text, style="dim")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
