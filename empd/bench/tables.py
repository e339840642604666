"""Lines of a run as tables for people: on the report's page, in README.md and in bench/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from empd.bench.figures import shown

Line = Mapping[str, Any]
NONE, MISSED = "–", "✗"


class Table(NamedTuple):
    """Texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


PEER_COLUMNS = {
    "throughput": "jobs/s",
    "latency": "one job, p50",
    "payload": "16 MiB in and out",
    "memory": "a waiting job",
    "recovery": "a killed worker's job starts again after",
}
COST_MODES = {
    "batch256": "in batches of 256",
    "single": "one by one, without waiting",
    "alone": "alone: each after the other's result",
}
COST_COLUMNS = {
    "client": "client",
    "broker": "broker",
    "journal": "(of it the journal)",
    "worker": "worker",
    "web": "web (history)",
    "total": "all",
    "written": "written",
}
WALLS = "by 256, at most jobs/s: one thread, two workers, {cores} cores"
MATRIX_AXES = (("durability", "batch"), ("workers", "payload_bytes"))
MATRIX_LINES_MIN = 20
"""With fewer the table would be mostly empty: each axis varies alone then, and the plots show it."""


def value(line: Line) -> str:
    """A figure with its unit; a cross where its bound is not met."""
    number, unit = line["value"], line["unit"]
    if unit == "ms" and number >= 1000:
        number, unit = number / 1000, "s"
    if line["details"].get("again") is False:
        return f"not within {number:.0f} {unit}"
    rounded = float(f"{number:.3g}")
    said = f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
    said += {"ratio": " ×", "jobs/s": "", "bytes": " B"}.get(unit, f" {unit}")
    return said if line["verdict"] in (None, "met") else f"{said} {MISSED}"


def bound(line: Line) -> str:
    """The figure's bound, in the unit in which its value is shown; a dash where it has none."""
    if not line["bound"]:
        return NONE
    sign, number = line["bound"][0], line["target"]
    if line["unit"] != "ms":
        return str(line["bound"])
    return f"{sign} {number / 1000:g} s" if number >= 1000 else f"{sign} {number:g} ms"


def peers(lines: Iterable[Line], with_settings: bool = False) -> Table | None:
    """Every peer in each of its settings, in the order in which they were measured; None without any."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        axes = line["axes"]
        if "peer" in axes:
            found.setdefault((axes["peer"], axes["setting"]), {})[axes["of"]] = line
    rows = []
    for (peer, setting), measured in found.items():
        rows.append([peer, setting, *(value(measured[of]) if of in measured else NONE for of in PEER_COLUMNS)])
        if with_settings:
            settings = next(iter(measured.values()))["settings"]
            rows[-1].append(": ".join(filter(None, (settings.get("versions"), settings["setting"]))))
    head = ["peer", "setting", *PEER_COLUMNS.values(), *(["what that is"] if with_settings else [])]
    return Table(head, rows) if rows else None


def costs(lines: Iterable[Line]) -> Table:
    """What a job costs each process, in µs of CPU, and the bytes written; and the walls that follow: how many jobs/s
    one thread can do, two workers, and all cores together. Raises KeyError for a figure that is not there."""
    by_name = {line["name"]: line for line in lines}
    rows = []
    for mode, said in COST_MODES.items():
        *micros, written = (by_name[f"cost.{mode}.{column}"]["value"] for column in COST_COLUMNS)
        rows.append([said, *map(_two_digits, micros), f"{_two_digits(written / 1000)} KB"])
    cores = by_name["cost.batch256.total"]["machine"]["cores"]
    at_once = {"journal": 0, "worker": 2, "total": cores, "written": 0}
    walls = []
    for column in COST_COLUMNS:
        wall = at_once.get(column, 1) * 1e6 / by_name[f"cost.batch256.{column}"]["value"]
        walls.append(f"{float(f'{wall:.2g}'):,.0f}" if wall else NONE)
    return Table(["CPU of one job, µs", *COST_COLUMNS.values()], [*rows, [WALLS.format(cores=cores), *walls]])


def _two_digits(number: float) -> str:
    return shown(float(f"{number:.2g}"))


def matrix(lines: Iterable[Line]) -> Table | None:
    """Throughput in each combination of durability and batch (rows), workers and payload (columns); None where only a
    few were measured."""
    found = {tuple(line["axes"].values()): line for line in lines if "payload_bytes" in line["axes"]}
    if len(found) < MATRIX_LINES_MIN:
        return None
    cells: dict[tuple[tuple[Any, ...], tuple[Any, ...]], Line] = {}
    for line in found.values():
        row, column = (tuple(line["axes"][axis] for axis in axes) for axes in MATRIX_AXES)
        cells[row, column] = line
    rows, columns = (list(dict.fromkeys(cell[side] for cell in cells)) for side in (0, 1))
    body = {cell: value(cells[cell]) if cell in cells else NONE for cell in product(rows, columns)}
    return Table(
        ["jobs/s", *(f"{workers} worker{'s' * (workers > 1)}, {size:,} B" for workers, size in columns)],
        [[f"{row[0]}, batch {row[1]}", *(body[row, column] for column in columns)] for row in rows],
    )
