"""Reading a journal from outside: what is wrong with it, and what can be saved. Neither writes a byte; both work
beside the daemon that owns the journal."""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from empd.errors import JournalDamaged, JournalError, JournalNewer
from empd.store import database, mark
from empd.store.journal import APPLICATION_ID, SCHEMA_VERSION, Row, row_crc

PROBLEMS_MAX = 1000
"""No more problem lines than this are listed; the counts go on."""

_FAILURES_MAX = 100_000
_HEADER_BYTES = 100
_WRITE_FORMAT_AT, _WRITE_FORMATS = 18, (1, 2)
_ROWS = "SELECT seq, at_ns, kind, origin, body, crc FROM rows WHERE seq >= ? ORDER BY seq"


class Verification(NamedTuple):
    """What `verify` found. `problems` is empty for a whole journal; `kinds` counts rows by kind."""

    problems: list[str]
    rows: int = 0
    body_bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    damaged_rows: int = 0
    missing_rows: int = 0
    kinds: dict[int, int] = {}


def verify(path: Path) -> Verification:
    """Checks the file's structure, every row's checksum, the gapless order and the mark.

    Raises JournalNewer for a file of a later empd and JournalError when there is no file.
    """
    mark_seen = mark.read(path.with_suffix(".mark"))  # before the rows: a living writer only moves ahead of it
    try:
        with closing(_open(path)) as connection:
            return _Scan(path, connection).run(mark_seen)
    except JournalDamaged as error:
        return Verification([str(error)])
    except (sqlite3.Error, KeyError, ValueError) as error:
        return Verification([f"{path}: its tables are not as they were made: {error}"])


def export(path: Path) -> Iterator[Row]:
    """Every row that can be read and whose checksum holds, oldest first; damaged ones are passed over.

    Raises JournalNewer, JournalDamaged (not a journal at all) and JournalError (no file).
    """
    with closing(_open(path)) as connection:
        for row, whole in _readable(connection, []):
            if whole:
                yield row


class _Scan:
    """One pass over a journal under one snapshot."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._problems: list[str] = []
        self._kinds: Counter[int] = Counter()
        self._rows = self._body_bytes = self._damaged = self._missing = 0

    def run(self, mark_seen: mark.Mark | None) -> Verification:
        self._connection.execute("BEGIN")
        meta = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
        first_seq = int(meta["trimmed_through"]) + 1
        last_seq = self._scan_rows(first_seq)
        if mark_seen and mark_seen.last_seq > last_seq:
            self._missing += mark_seen.last_seq - last_seq
            self._say(f"rows {last_seq + 1} to {mark_seen.last_seq} were committed and are missing")
        self._check_header()
        self._check_structure()
        return Verification(
            self._problems,
            self._rows,
            self._body_bytes,
            first_seq,
            last_seq,
            self._damaged,
            self._missing,
            dict(self._kinds),
        )

    def _check_header(self) -> None:
        """SQLite reads a file whose header names a later format for writing, and does not write it."""
        with self._path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        if header and header[_WRITE_FORMAT_AT] not in _WRITE_FORMATS:
            self._say(f"the header names write format {header[_WRITE_FORMAT_AT]}; the journal can be read, not written")

    def _check_structure(self) -> None:
        try:
            for (line,) in self._connection.execute("PRAGMA quick_check(20)"):
                if line != "ok":
                    self._say(line)
        except sqlite3.Error as error:
            self._say(f"the check of the structure ended early: {error}")

    def _scan_rows(self, first_seq: int) -> int:
        expected = first_seq
        for row, whole in _readable(self._connection, self._problems):
            if row.seq > expected:
                self._missing += row.seq - expected
                self._say(f"rows {expected} to {row.seq - 1} are missing")
            expected = row.seq + 1
            self._rows += 1
            if not whole:
                self._damaged += 1
                self._say(f"row {row.seq} is damaged: its checksum does not hold")
                continue
            self._kinds[row.kind] += 1
            self._body_bytes += len(row.body)
        return expected - 1

    def _say(self, line: str) -> None:
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(f"{self._path}: {line}")


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise JournalError(f"{path}: there is no journal")
    try:
        found = database.inspect(path)
    except sqlite3.Error as error:
        raise JournalDamaged(f"{path}: {error}") from None
    if found.version > SCHEMA_VERSION:
        raise JournalNewer(f"{path} has schema {found.version}, this empd knows {SCHEMA_VERSION}")
    if found.application_id != APPLICATION_ID:
        raise JournalDamaged(f"{path} is not a journal of empd (application id {found.application_id:#x})")
    if found.version < 1:
        raise JournalDamaged(f"{path} has tables, but no schema version")
    return database.connect_read_only(path)


def _readable(connection: sqlite3.Connection, problems: list[str]) -> Iterator[tuple[Row, bool]]:
    """Rows and whether they are whole. A page that cannot be read ends one scan; the next starts behind that row."""
    start, failures = 0, 0
    last = _last_seq(connection)
    while start <= last and failures < _FAILURES_MAX:
        try:
            for *fields, crc in connection.execute(_ROWS, (start,)):
                row = Row(*fields)
                start = max(start, row.seq) + 1
                yield row, _is_whole(row, crc)
            return
        except sqlite3.Error as error:
            failures += 1
            if len(problems) < PROBLEMS_MAX:
                problems.append(f"row {start} cannot be read: {error}")
            start += 1


def _last_seq(connection: sqlite3.Connection) -> int:
    try:
        return int(connection.execute("SELECT coalesce(max(seq), 0) FROM rows").fetchone()[0])
    except sqlite3.Error:
        return 1 << 62  # unknown: go on until the scan ends or too much is wrong


def _is_whole(row: Row, crc: Any) -> bool:
    try:
        return bool(row_crc(row) == crc)
    except (struct.error, TypeError):
        return False
