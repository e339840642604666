"""The history: one row per finished job, a projection of the journal that can always be made again.

It is written in bulk together with the journal cursor it stands for, in one transaction, so that a crash repeats or
loses nothing. A file that is damaged or from a newer empd is moved aside and rebuilt from what the journal still has.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from empd.clock import NS_PER_S
from empd.errors import EmpdError
from empd.job import Outcome
from empd.payload import BlobRef
from empd.store import database
from empd.store.record import COLUMNS, Ended, FinishedRecord, from_stored, inserts, outline_blob, to_signed

APPLICATION_ID = 0x454D5048  # "EMPH"
SCHEMA_VERSION = 1
SCAN_ROWS_MAX = 100_000
"""A search looks at no more rows than this; a page may therefore be short and still have a next cursor."""

SESSIONS_MAX = 100_000
"""So many sessions' horizons are kept; older sessions count as expired as a whole."""

_PAGE_BYTES = 4096
_IDS_MAX = 500

_EXPIRE_HORIZON = """
INSERT INTO expired
SELECT id >> 32 & 0xffffffff, max(id & 0xffffffff) FROM finished WHERE position <= ? GROUP BY 1
ON CONFLICT DO UPDATE SET highest = max(highest, excluded.highest)
"""

_DROP_RESULTS = "UPDATE finished SET result = NULL WHERE position > ? AND position <= ? AND result IS NOT NULL"


class HistoryError(EmpdError):
    """The history cannot be read or written. `damaged`: open it anew with `rebuild=True`."""

    def __init__(self, text: str, damaged: bool) -> None:
        self.damaged = damaged
        super().__init__(text)


class Filter(NamedTuple):
    """What a search wants; None is anything. `label` is one key and value; `since_ns` ≤ finished < `until_ns`."""

    service: str | None = None
    outcome: int | None = None
    customer_id: str | None = None
    workflow_id: str | None = None
    worker: str | None = None
    label: tuple[str, str] | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    def indexed(self) -> dict[str, Any]:
        """The conditions that an index answers."""
        found: dict[str, Any] = {
            "service = ?": self.service,
            "customer_id = ?": self.customer_id,
            "workflow_id = ?": self.workflow_id,
        }
        if self.outcome:  # the literal lets SQLite use the partial index
            found["outcome <> 0 AND outcome = ?"] = self.outcome
        return {text: value for text, value in found.items() if value is not None}

    def scanned(self) -> dict[str, Any]:
        """The conditions that are tried row by row. The label's value comes as a pair."""
        found: dict[str, Any] = {
            "worker = ?": self.worker,
            "finished_ns >= ?": self.since_ns,
            "finished_ns < ?": self.until_ns,
            "EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)": self.label,
        }
        if self.outcome == 0:
            found["outcome = ?"] = 0
        return {text: value for text, value in found.items() if value is not None}


class History:
    """The history in one SQLite file. Methods may be called from any thread, one at a time.

    `moved_aside` is empty, or says what was wrong with the file that was found and where it lies now.
    Every method raises HistoryError when the file cannot be used.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, moved_aside: str) -> None:
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()
        self._expired_blobs: list[BlobRef] = []
        self.moved_aside = moved_aside
        with self._guarded():
            meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
            last = connection.execute("SELECT coalesce(max(position), 0) FROM finished").fetchone()[0]
        self._cursor = int(meta["cursor"])
        self._instance = str(meta["instance"])
        self._results_dropped = int(meta["results_dropped"])
        self._session_floor = int(meta["session_floor"])
        self._last_position = max(int(meta["last_position"]), last)

    @classmethod
    def open(cls, path: Path, *, rebuild: bool = False) -> History:
        """Opens or makes the history at `path`; a file that cannot be used (or any, with `rebuild`) is moved aside."""
        moved = _move_aside(path, "damaged", "a damage was found while it was used") if rebuild else ""
        try:
            return cls(path, _connect(path), moved)
        except (sqlite3.DatabaseError, HistoryError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_newer(path):
                raise HistoryError(f"{path}: cannot be opened: {error}", damaged=False) from None
            moved = _move_aside(path, "newer" if _is_newer(path) else "damaged", str(error))
        return cls(path, _connect(path), moved)

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except (sqlite3.Error, msgspec.MsgspecError) as error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or not isinstance(
                    error, sqlite3.Error
                )
                raise HistoryError(f"{self._path}: {error}", damaged) from error

    @property
    def cursor(self) -> int:
        """The journal's last row that this history contains."""
        return self._cursor

    @property
    def instance(self) -> str:
        """The journal instance that `cursor` counts in; empty before the first `follow`."""
        return self._instance

    def follow(self, instance: str, cursor: int) -> None:
        """Sets the cursor: for a journal that is another one than before, or whose rows up to `cursor` are trimmed."""
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE meta SET value = ? WHERE key = 'instance'", (instance,))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'cursor'", (cursor,))
            connection.execute("COMMIT")
            self._instance, self._cursor = instance, cursor

    def apply(self, through_seq: int, ended: Iterable[Ended]) -> None:
        """One transaction: a row for each job, and the cursor. A job that ended before (it was dead-lettered and
        retried) is replaced. Nothing happens when the cursor is already at `through_seq`."""
        if through_seq <= self._cursor:
            return
        last = self._last_position
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for group in ended:
                for statement, parameters in inserts(last + 1, group):
                    connection.execute(statement, parameters)
                last += len(group.jobs)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'cursor'", (through_seq,))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'last_position'", (last,))
            connection.execute("COMMIT")
            self._cursor, self._last_position = through_seq, last

    def get(self, ids: Iterable[int]) -> dict[int, FinishedRecord]:
        """The records of those ids that are in the history."""
        wanted = [to_signed(job_id) for job_id in ids]
        found: dict[int, FinishedRecord] = {}
        with self._guarded() as connection:
            for start in range(0, len(wanted), _IDS_MAX):
                for record in self._fetch(connection, "id", wanted[start : start + _IDS_MAX]):
                    found[record.id] = record
        return found

    def has_expired(self, job_id: int) -> bool:
        """True for an id that is not in the history because its retention is over (`expired_from_history`)."""
        session, number = job_id >> 32, job_id & 0xFFFFFFFF
        with self._guarded() as connection:
            row = connection.execute("SELECT highest FROM expired WHERE session = ?", (session,)).fetchone()
            expired = number <= row[0] if row else session < self._session_floor
            return expired and not self._fetch(connection, "id", [to_signed(job_id)])

    def search(self, wanted: Filter, cursor: int | None, limit: int) -> tuple[list[FinishedRecord], int | None]:
        """Up to `limit` records, newest first, and the cursor of the next page (None: there is none).

        `cursor` is None or what the page before returned.
        """
        before = self._last_position + 1 if cursor is None else cursor
        indexed, scanned = wanted.indexed(), wanted.scanned()
        inner = " AND ".join(["position < ?", *indexed])
        outer = " AND ".join(scanned) or "1"
        source = f"FROM finished WHERE {inner} ORDER BY position DESC"
        with self._guarded() as connection:
            positions = [
                row[0]
                for row in connection.execute(
                    f"SELECT position FROM (SELECT position, worker, finished_ns, labels, outcome {source} "
                    f"LIMIT {SCAN_ROWS_MAX}) WHERE {outer} LIMIT ?",
                    (before, *indexed.values(), *_flat(scanned.values()), limit),
                )
            ]
            if len(positions) == limit:
                following: int | None = positions[-1] if positions else None
            else:  # short: either the end, or the bound on what is looked at
                last = connection.execute(
                    f"SELECT position {source} LIMIT 1 OFFSET {SCAN_ROWS_MAX - 1}", (before, *indexed.values())
                ).fetchone()
                following = last[0] if last else None
            records = self._fetch(connection, "position", positions)
        return records, following

    def _fetch(self, connection: sqlite3.Connection, column: str, keys: Sequence[int]) -> list[FinishedRecord]:
        found: list[FinishedRecord] = []
        for start in range(0, len(keys), _IDS_MAX):
            part = keys[start : start + _IDS_MAX]
            marks = ",".join("?" * len(part))
            query = f"SELECT {COLUMNS} FROM finished WHERE {column} IN ({marks}) ORDER BY position DESC"
            found += [from_stored(row, self._results_dropped) for row in connection.execute(query, part)]
        return found

    def expire(self, now_wall_ns: int, result_keep_s: float, history_keep_s: float, limit: int) -> int:
        """Drops results older than `result_keep_s` and rows older than `history_keep_s`, at most `limit` of each in
        one transaction; returns how many of both. Call again while it returns something."""
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            old = _due(connection, self._results_dropped, now_wall_ns, int(result_keep_s * NS_PER_S), limit)
            dropped = old[-1][0] if old else self._results_dropped
            connection.execute(_DROP_RESULTS, (self._results_dropped, dropped))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'results_dropped'", (dropped,))
            oldest = _due(connection, 0, now_wall_ns, int(history_keep_s * NS_PER_S), limit)
            if oldest:
                connection.execute(_EXPIRE_HORIZON, (oldest[-1][0],))
                connection.execute("DELETE FROM finished WHERE position <= ?", (oldest[-1][0],))
            floor = self._bound_sessions(connection) if oldest else self._session_floor
            gone = old + [row for row in oldest if row[0] > dropped]
            blobs = [blob for _, outline in gone if (blob := outline_blob(outline))]
            connection.execute("COMMIT")
            self._results_dropped, self._session_floor = dropped, floor
            self._expired_blobs += blobs
        return len(old) + len(oldest)

    def _bound_sessions(self, connection: sqlite3.Connection) -> int:
        """Forgets the horizons of the oldest sessions past the bound; returns the session that counts start at."""
        surplus = connection.execute("SELECT count(*) FROM expired").fetchone()[0] - SESSIONS_MAX
        if surplus <= 0:
            return self._session_floor
        query = "SELECT session FROM expired ORDER BY session LIMIT 1 OFFSET ?"
        floor = int(connection.execute(query, (surplus,)).fetchone()[0])
        connection.execute("DELETE FROM expired WHERE session < ?", (floor,))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'session_floor'", (floor,))
        return floor

    def result_blobs(self, after: int, limit: int) -> tuple[set[str], int | None]:
        """The ids of blobs that results in the next `limit` rows after position `after` refer to, and the position to
        go on behind (None: that was all). Begin with 0."""
        after = max(after, self._results_dropped)
        query = "SELECT position, outline FROM finished WHERE position > ? ORDER BY position LIMIT ?"
        with self._guarded() as connection:
            rows = connection.execute(query, (after, limit)).fetchall()
            found = {blob.id for _, outline in rows if (blob := outline_blob(outline))}
        return found, rows[-1][0] if len(rows) == limit else None

    def take_expired_blobs(self) -> list[BlobRef]:
        """The arena's blobs that only results referred to which `expire` has dropped since the last call."""
        with self._lock:
            taken, self._expired_blobs = self._expired_blobs, []
        return taken

    def stats(self) -> dict[str, int]:
        """Counts: `rows`, one for each outcome label, `cursor`, `size_bytes`, `expired_sessions`."""
        with self._guarded() as connection:
            ended = dict(
                connection.execute(
                    "SELECT outcome, count(*) FROM finished WHERE outcome <> 0 GROUP BY outcome"
                ).fetchall()
            )
            rows = connection.execute("SELECT count(*) FROM finished").fetchone()[0]
            sessions = connection.execute("SELECT count(*) FROM expired").fetchone()[0]
        ended[0] = rows - sum(ended.values())
        counts = {outcome.label: ended.get(outcome, 0) for outcome in Outcome}
        size_bytes = sum(path.stat().st_size for path in _files(self._path) if path.exists())
        return {**counts, "rows": rows, "cursor": self._cursor, "size_bytes": size_bytes, "expired_sessions": sessions}

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        with self._lock:
            self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    found = database.inspect(path)
    if found.version > SCHEMA_VERSION:
        raise HistoryError(f"schema {found.version} is newer than {SCHEMA_VERSION}", damaged=False)
    if not found.fresh and found.application_id != APPLICATION_ID:
        raise HistoryError("it is not a history of empd", damaged=True)
    pragmas = {
        "page_size": str(_PAGE_BYTES),
        "journal_mode": "WAL",
        "synchronous": "NORMAL",
        "secure_delete": "OFF",
        "journal_size_limit": str(64 << 20),
        "cache_size": "-16384",
    }
    connection = database.connect(path, pragmas, any_thread=True)
    try:
        database.migrate(connection, "history", APPLICATION_ID, found.version, SCHEMA_VERSION)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _is_newer(path: Path) -> bool:
    try:
        return database.inspect(path).version > SCHEMA_VERSION
    except sqlite3.Error:
        return False


def _move_aside(path: Path, kind: str, reason: str) -> str:
    """Renames the file and its write-ahead log, over what was set aside before: one copy is kept."""
    aside = path.with_name(f"{path.name}.{kind}")
    for source, target in zip(_files(path), _files(aside), strict=True):
        target.unlink(missing_ok=True)
        if source.exists():
            os.replace(source, target)
    return f"{path}: {reason}; it lies now at {aside}, and the history is rebuilt from the journal"


def _files(path: Path) -> list[Path]:
    return [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]


def _due(connection: sqlite3.Connection, after: int, now_ns: int, keep_ns: int, limit: int) -> list[tuple[int, bytes]]:
    """The oldest rows after a position whose time is over, as (position, outline), up to the first that is not due.

    A row dated further ahead than it would be kept comes from a wrong clock and counts as due.
    """
    due: list[tuple[int, bytes]] = []
    query = "SELECT position, finished_ns, outline FROM finished WHERE position > ? ORDER BY position LIMIT ?"
    with closing(connection.execute(query, (after, limit))) as rows:
        for position, finished_ns, outline in rows:
            if now_ns - keep_ns <= finished_ns <= now_ns + keep_ns:
                break
            due.append((position, outline))
    return due


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from value
        else:
            yield value
