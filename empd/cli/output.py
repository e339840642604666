"""What commands print: JSON for programs, tables for people."""

from __future__ import annotations

import base64
import datetime
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from empd.job import format_id
from empd.result import JobStatus

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_FILES = 240
LAST_COLUMN_CHARS = 24
"""Narrower than this a text is not readable in a column."""
EVIDENCE_LINES = 6

_STYLES = {
    "completed": "green",
    "failed": "red",
    "dead_lettered": "red",
    "expired": "yellow",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "assigned": "cyan",
    "delayed": "magenta",
    "met": "green",
    "missed": "red",
    "machine too small": "yellow",
    "better": "green",
    "worse": "red",
    "not shown": "yellow",
}


def console(stderr: bool = False) -> Console:
    """Rich's console, imported when something is drawn."""
    from rich.console import Console

    # Into a file or a pipe nothing is folded: grep wants whole lines.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else WIDTH_OF_FILES
    return Console(stderr=stderr, highlight=False, width=width)


def print_json(value: Any) -> None:
    """One JSON document; indented on a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, default=_plain, ensure_ascii=False, indent=indent))


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a `table`."""
    console().print(table(columns, rows))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """A table; columns that begin with `>` are right-aligned. Where the last one has no room beside the others, what it
    says stands below, after the first cell of its row."""
    from rich.console import Group
    from rich.text import Text

    cells = list(rows)
    if not cells or _room_for_last(columns, cells) >= LAST_COLUMN_CHARS:
        return _drawn(columns, cells)
    said = [f"{row[0]}: {row[-1]}" for row in cells if row[-1]]
    return (
        Group(_drawn(columns[:-1], [row[:-1] for row in cells]), *map(Text, said)) if said else _drawn(columns, cells)
    )


def _room_for_last(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The width that is left for the last column, or that it needs, if that is less."""
    longest = [max(len(row[n]) for row in [[c.removeprefix(">") for c in columns], *rows]) for n in range(len(columns))]
    left = console().width - sum(longest[:-1]) - 3 * len(columns)
    return LAST_COLUMN_CHARS if longest[-1] <= left else left


def _drawn(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # Only the last column gives way on a narrow terminal: ids and names stay whole.
        drawn.add_column(
            column.removeprefix(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=column != columns[-1],
        )
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return drawn


def state_name(state: str) -> str:
    """A state's name as everywhere but on the wire, where a job that is dead-lettered and kept is `dead`."""
    return "dead_lettered" if state == "dead" else state


def status_document(status: JobStatus) -> dict[str, Any]:
    """A job's state as JSON; the keys are those of the HTTP API."""
    return {
        "id": format_id(status.id),
        "state": state_name(status.state),
        "service": status.service,
        "priority": status.priority,
        "customer_id": status.customer_id,
        "workflow_id": status.workflow_id,
        "labels": status.labels or {},
        "submitted_at": time_text(status.submitted_ns) or None,
        "started_at": time_text(status.started_ns) or None,
        "attempts": status.attempts,
        "worker": status.worker or None,
        "reason": status.reason,
        "doubt": status.doubt,
        "error": None
        if status.error is None
        else {
            "failure": status.error.failure,
            "message": status.error.message,
            "evidence": status.error.evidence,
        },
    }


def some_lines(evidence: str, whole: str) -> str:
    """A few lines of a job's evidence: its end, or its beginning where that tells where it happened (a fatal error's
    stacks have the innermost call first). `whole` says how to see all of it."""
    lines = evidence.splitlines()
    left_out = len(lines) - EVIDENCE_LINES
    if left_out <= 0:
        return evidence
    more = f"… {left_out} lines more ({whole})"
    if "(most recent call first)" in evidence:
        return "\n".join([*lines[:EVIDENCE_LINES], more])
    return "\n".join([more, *lines[left_out:]])


def time_text(wall_ns: int) -> str:
    """ISO 8601 in UTC, to the millisecond; empty for 0."""
    if not wall_ns:
        return ""
    moment = datetime.datetime.fromtimestamp(wall_ns / 1e9, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(wall_ns: int) -> str:
    """How long ago, for people; empty for 0."""
    return duration(time.time() - wall_ns / 1e9) if wall_ns else ""


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `5.2 h`, `2.1 d`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def wall_ns(text: str | None) -> int:
    """Unix nanoseconds of an ISO 8601 time; 0 for none."""
    return round(datetime.datetime.fromisoformat(text).timestamp() * 1e6) * 1000 if text else 0
