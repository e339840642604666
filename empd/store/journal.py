"""The journal: an append-only sequence of facts that survives, behind five methods.

Rows are numbered without gaps from 1. `append` buffers, `commit` makes all of it durable at once, and only what
`commit` has returned may be told to anyone. Beside the database at `journal.db` lie

    journal.db-wal, -shm   SQLite's write-ahead log
    journal.mark           the committed high-water mark (see mark.py)
    journal.reserve        disk space held back (see reserve.py)

Durability: `fsync` survives power loss, `os` any death of processes, `memory` is `os` on a file in tmpfs.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from empd import clock
from empd.disk import sync_directory
from empd.errors import JournalDamaged, JournalError, JournalNewer
from empd.store import database
from empd.store.mark import Mark, MarkFile
from empd.store.reserve import DiskReserve

APPLICATION_ID = 0x454D504A  # "EMPJ"
SCHEMA_VERSION = 1
ACCEPT_FLAG = "--accept-loss"

Durability = Literal["fsync", "os", "memory"]
DURABILITIES: tuple[Durability, ...] = ("fsync", "os", "memory")

_HEAD = struct.Struct("<qqqq")
_INSERT = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)"
_INSERT_FEW = {count: _INSERT + ", (?, ?, ?, ?, ?, ?)" * (count - 1) for count in range(1, 5)}
"""What a lone job's pass writes: one statement is its own transaction, and cheaper than BEGIN and COMMIT around it."""
_SELECT = "SELECT seq, at_ns, kind, origin, body, crc FROM rows WHERE seq >= ? ORDER BY seq LIMIT ?"
_PAGE_BYTES = 4096
_CHECKPOINT_BYTES = 2 << 20
"""About so much is moved at once from the write-ahead log into the database: all wait meanwhile. 8 MiB took 12 ms of
processor and as many of disk, 2 MiB takes 4, and all together cost the same. Commits do it past twice that.
A thread that moves them beside the commits is no way: until SQLite 3.51.3 that can damage the file (WAL-reset bug)."""
_LOG_BYTES = 8 << 20
_WAL_BYTES_MAX = 64 << 20
_COMPACT_FREE_BYTES = 32 << 20
_COMPACT_FREE_BYTES_TIGHT = 1 << 20  # while the disk is full
_COMPACT_USED_BYTES = 4 << 20

# Errors that say nothing about the content of the file.
_SURROUNDINGS = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


class Row(NamedTuple):
    """One fact. `kind` and `origin` are the writer's; all integers fit 64 bits with sign."""

    seq: int
    at_ns: int
    kind: int
    origin: int
    body: bytes


class Journal(Protocol):
    """What the broker knows of a journal. `last_seq` is the last committed row, `first_seq` the oldest kept."""

    first_seq: int
    last_seq: int

    def append(self, rows: Sequence[Row]) -> None:
        """Buffers rows until `commit`. ValueError unless their seq goes on gaplessly; nothing is buffered then."""

    def commit(self) -> int:
        """Makes the buffered rows durable and returns `last_seq`.

        Raises JournalError when it cannot: nothing of the pass may be sent, and the object is unusable.
        """

    def read_from(self, seq: int, limit: int) -> list[Row]:
        """Up to `limit` committed rows from `seq` on. JournalDamaged names the first row that is not as written."""

    def carry_and_trim(self, carries: Sequence[Row], upto_seq: int) -> None:
        """One transaction: appends what is buffered and `carries`, deletes rows up to `upto_seq`, commits."""

    def close(self) -> None:
        """Closes the files; buffered rows are dropped. Closing twice is fine."""


def row_crc(row: Row) -> int:
    """The checksum of a row. Raises struct.error when a number does not fit 64 bits."""
    return zlib.crc32(row[4], zlib.crc32(_HEAD.pack(row[0], row[1], row[2], row[3])))


class SqliteJournal:
    """The journal in one SQLite file. One process writes; `verify` and `export` may read beside it.

    `instance` is a random name (32 hex digits) given when the file is made, and anew when a loss is accepted.
    `loss` is empty, or says which rows are gone that the durability did not promise to keep, or whose loss the
    operator accepted.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, mark: MarkFile, reserve: DiskReserve) -> None:
        self._path = path
        self._connection = connection
        self._execute = connection.execute
        self._mark_file = mark
        self._reserve = reserve
        self._mark = Mark(0, 0, zlib.crc32(clock.boot_id().encode()), 0)
        self._buffer: list[tuple[int, int, int, int, bytes, int]] = []
        self._next_seq = 1
        self._failed = ""
        self._logged_bytes = 0  # since the last checkpoint, about
        self.first_seq = 1
        self.last_seq = 0
        self.instance = ""
        self.loss = ""

    @classmethod
    def open(
        cls, path: Path, *, durability: Durability, reserve_bytes: int, accept_loss: bool = False
    ) -> SqliteJournal:
        """Opens or makes the journal at `path`.

        Raises JournalNewer (nothing was written) for a file of a later empd, JournalDamaged for one that is not
        whole or lacks rows that the mark says were committed (unless `accept_loss`), JournalError when the disk
        does not let it open.
        """
        version = _inspect(path, accept_loss)
        mark = connection = None
        try:
            mark = MarkFile(path.with_suffix(".mark"))
            connection = database.connect(path, _pragmas(durability))
            database.migrate(connection, "journal", APPLICATION_ID, version, SCHEMA_VERSION)
            if version == 0 and durability == "fsync":
                sync_directory(path.parent)
            reserve = DiskReserve(path.with_suffix(".reserve"), reserve_bytes)
            journal = cls(path, connection, mark, reserve)
            journal._load(DURABILITIES.index(durability), accept_loss)
            reserve.restore()
            journal._lay_out_log()
        except (sqlite3.Error, OSError, JournalError, KeyError, ValueError, TypeError) as error:
            if mark:
                mark.close()
            if connection:
                connection.close()
            raise _as_journal_error(path, error) from None
        return journal

    def _lay_out_log(self) -> None:
        """Lets the write-ahead log grow to what it needs until it is checkpointed and begun again. From then on a
        commit overwrites blocks that are there, which costs the disk about half of what growing a file does.
        Without the room for it, nothing is lost but that."""
        log = self._path.with_name(self._path.name + "-wal")
        if _file_bytes(log) >= _LOG_BYTES:
            return
        try:
            self._execute("CREATE TABLE IF NOT EXISTS room (bytes BLOB)")
            self._execute("INSERT INTO room VALUES (zeroblob(?))", (_LOG_BYTES,))
        except sqlite3.OperationalError as error:
            if not _is_disk_full(error):
                raise
        self._execute("DROP TABLE IF EXISTS room")
        self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _load(self, durability: int, accept_loss: bool) -> None:
        meta = dict(self._execute("SELECT key, value FROM meta").fetchall())
        trimmed = int(meta["trimmed_through"])
        count, first, last = self._execute("SELECT count(*), min(seq), max(seq) FROM rows").fetchone()
        self.first_seq, self.last_seq = trimmed + 1, last if count else trimmed
        if count and (first != self.first_seq or count != last - first + 1):
            raise JournalDamaged(
                f"{self._path}: rows are missing between {self.first_seq} and {last} "
                f"({count} rows are there, the first is {first}). {_advice(self._path)}"
            )
        self._next_seq = self.last_seq + 1
        self.instance = meta["instance"]
        self._mark = self._mark._replace(durability=durability, instance32=zlib.crc32(self.instance.encode()))
        self._compare_with_mark(accept_loss)
        self._write_mark()

    def _compare_with_mark(self, accept_loss: bool) -> None:
        mark = self._mark_file.newest
        if mark is None or (mark.last_seq <= self.last_seq and mark.instance32 == self._mark.instance32):
            return
        if mark.instance32 != self._mark.instance32:
            text = (
                f"{self._path} (rows to {self.last_seq}) is not the journal that was written here last "
                f"(rows to {mark.last_seq})"
            )
        else:
            text = f"{self._path}: rows {self.last_seq + 1} to {mark.last_seq} were committed and are missing"
        # Without fsync a reboot may take the latest rows with it: that is within the promise, and only reported.
        within_promise = mark.durability != 0 and mark.boot32 != self._mark.boot32
        if not (accept_loss or within_promise):
            raise JournalDamaged(
                f"{text}. Restore the newest copy of the journal, look at it with `empd journal verify`, or accept "
                f"the loss with `empd run {ACCEPT_FLAG}`"
            )
        self.loss = text
        # Whoever holds a cursor into the lost rows sees by the new name that it points nowhere.
        self._execute("UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'instance'")
        self.instance = self._execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()[0]
        self._mark = self._mark._replace(instance32=zlib.crc32(self.instance.encode()))

    def _write_mark(self) -> None:
        self._mark_file.write(self.last_seq, self._mark)

    def append(self, rows: Sequence[Row]) -> None:
        """See Journal."""
        self._buffer += self._checked(rows, self._next_seq)
        self._next_seq += len(rows)

    @staticmethod
    def _checked(rows: Sequence[Row], expected: int) -> list[tuple[int, int, int, int, bytes, int]]:
        checked = []
        for row in rows:
            seq, at_ns, kind, origin, body = row
            if seq != expected:
                raise ValueError(f"row {seq} does not follow row {expected - 1}")
            try:
                crc = zlib.crc32(body, zlib.crc32(_HEAD.pack(seq, at_ns, kind, origin)))
            except struct.error as error:
                raise ValueError(f"row {seq}: {error}") from None
            checked.append((seq, at_ns, kind, origin, body, crc))
            expected += 1
        return checked

    def commit(self) -> int:
        """See Journal."""
        if self._buffer:
            self._commit(None)
        elif self._failed:
            raise JournalError(self._failed)
        return self.last_seq

    def carry_and_trim(self, carries: Sequence[Row], upto_seq: int) -> None:
        """See Journal. ValueError when `upto_seq` is past what is committed."""
        if upto_seq > self.last_seq:
            raise ValueError(f"cannot trim to row {upto_seq}: only rows to {self.last_seq} are committed")
        self.append(carries)
        self._commit(max(upto_seq, self.first_seq - 1))

    def _commit(self, trim_to: int | None) -> None:
        if self._failed:
            raise JournalError(self._failed)
        try:
            try:
                self._transact(trim_to)
            except sqlite3.OperationalError as error:
                if not (_is_disk_full(error) and self.release_reserve()):
                    raise
                self._transact(trim_to)
            self._logged_bytes += _PAGE_BYTES + sum([len(row[4]) for row in self._buffer])
            self.last_seq = self._next_seq - 1
            if trim_to is not None:
                self.first_seq = trim_to + 1
            self._buffer.clear()
            self._write_mark()
        except (sqlite3.Error, OSError) as error:
            self._failed = f"{self._path}: commit failed ({error}); the journal must be opened anew"
            raise JournalError(self._failed) from error

    def _transact(self, trim_to: int | None) -> None:
        if trim_to is None and len(self._buffer) in _INSERT_FEW:
            self._execute(_INSERT_FEW[len(self._buffer)], list(chain.from_iterable(self._buffer)))
            return
        try:
            self._execute("BEGIN IMMEDIATE")
            self._connection.executemany(_INSERT, self._buffer)
            if trim_to is not None:
                self._execute("DELETE FROM rows WHERE seq <= ?", (trim_to,))
                self._execute("UPDATE meta SET value = ? WHERE key = 'trimmed_through'", (str(trim_to),))
            self._execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                    self._execute("ROLLBACK")
            raise

    def read_from(self, seq: int, limit: int) -> list[Row]:
        """See Journal."""
        expected = max(seq, self.first_seq)
        stop = min(expected + limit, self.last_seq + 1)
        rows: list[Row] = []
        try:
            for *fields, crc in self._execute(_SELECT, (expected, max(0, stop - expected))):
                rows.append(checked_row(self._path, expected, fields, crc))
                expected += 1
        except sqlite3.Error as error:
            raise JournalDamaged(
                f"{self._path}: row {expected} cannot be read ({error}). {_advice(self._path)}"
            ) from None
        if expected < stop:
            raise JournalDamaged(f"{self._path}: row {expected} is missing. {_advice(self._path)}")
        return rows

    def checkpoint(self) -> None:
        """Moves the write-ahead log into the database once there is something to move; to be called when the pass's
        frames are on their way, so that only the next ones wait. Errors wait for the next commit."""
        if self._logged_bytes < _CHECKPOINT_BYTES or self._failed:
            return
        self._logged_bytes = 0
        with contextlib.suppress(sqlite3.OperationalError):  # the disk is full: the log keeps what it has
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def idle_work(self) -> None:
        """Work for a moment without traffic: moves the write-ahead log into the database, so that the next commits
        need not, and gives a mostly empty file back to the disk. Takes milliseconds, and 0.3 s for each GiB given back.

        Does nothing after a failed commit; errors wait for the next commit.
        """
        if self._failed or self._buffer:
            return
        try:
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            used_bytes, free_bytes = self._page_bytes()
            worth_bytes = _COMPACT_FREE_BYTES if self.reserve_held else _COMPACT_FREE_BYTES_TIGHT
            if free_bytes >= worth_bytes and used_bytes <= _COMPACT_USED_BYTES:
                self._execute("VACUUM")
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._lay_out_log()
        except sqlite3.OperationalError:
            return  # a reader is in the way, or the disk is full: nothing was lost, and there is another idle moment

    def _page_bytes(self) -> tuple[int, int]:
        pages, free, page_bytes = (
            int(self._execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * page_bytes, free * page_bytes

    def size_bytes(self) -> int:
        """Bytes in use: the database without its free pages, and the write-ahead log."""
        return self._page_bytes()[0] + _file_bytes(self._path.with_name(self._path.name + "-wal"))

    def free_disk_bytes(self) -> int:
        """What is free on the journal's file system, without the reserve."""
        status = os.statvfs(self._path.parent)
        return status.f_bavail * status.f_frsize

    @property
    def reserve_held(self) -> bool:
        """False once the reserve was given up: accept nothing new until `restore_reserve` returns True."""
        return self._reserve.is_whole

    def release_reserve(self) -> bool:
        """Gives the reserve to the file system; False when there was none left."""
        return self._reserve.release()

    def restore_reserve(self) -> bool:
        """Takes the reserve again; False while there is no room."""
        return self._reserve.restore()

    def close(self) -> None:
        """See Journal."""
        self._failed = self._failed or f"{self._path}: the journal is closed"
        self._buffer.clear()
        self._connection.close()
        self._mark_file.close()


def checked_row(path: Path, expected: int, fields: Sequence[object], crc: object) -> Row:
    """A row as it was written; JournalDamaged names what is not."""
    row = Row(*fields)  # type: ignore[arg-type]  # the checks below are what makes it true
    if row.seq != expected:
        raise JournalDamaged(f"{path}: row {expected} is missing. {_advice(path)}")
    try:
        whole = row_crc(row) == crc
    except (struct.error, TypeError):
        whole = False
    if not whole:
        raise JournalDamaged(f"{path}: row {expected} is damaged: its checksum does not hold. {_advice(path)}")
    return row


def _inspect(path: Path, accept_loss: bool) -> int:
    """The schema version of the file (0: none yet); writes nothing."""
    try:
        found = database.inspect(path)
    except sqlite3.Error as error:
        raise _as_journal_error(path, error) from None
    if found.version > SCHEMA_VERSION:
        raise JournalNewer(
            f"{path} has schema {found.version}, this empd knows {SCHEMA_VERSION}: install the newer empd again; "
            "nothing was changed"
        )
    if not found.fresh and found.application_id != APPLICATION_ID:
        raise JournalDamaged(f"{path} is not a journal of empd (application id {found.application_id:#x})")
    if not found.fresh and found.version < 1:
        raise JournalDamaged(f"{path} has tables, but no schema version. {_advice(path)}")
    wal = path.with_name(path.name + "-wal")
    if found.fresh and not accept_loss and not path.exists() and _file_bytes(wal):
        raise JournalDamaged(f"{path} is missing while {wal.name} is there. {_advice(path)}")
    return found.version


def _pragmas(durability: Durability) -> dict[str, str]:
    # A write-ahead log that is begun again is rewritten in place, which syncs faster than a growing file.
    return {
        "page_size": str(_PAGE_BYTES),
        "journal_mode": "WAL",
        "wal_autocheckpoint": str(2 * _CHECKPOINT_BYTES // _PAGE_BYTES),
        "synchronous": "FULL" if durability == "fsync" else "OFF",
        "journal_size_limit": str(_WAL_BYTES_MAX),
        "temp_store": "MEMORY",
        "secure_delete": "OFF",  # some distributions compile it in; it writes every trimmed page once more
    }


def _advice(path: Path) -> str:
    return (
        f"`empd journal verify` lists what is wrong, `empd journal export` saves what can be read; then restore a "
        f"copy of {path.name}, or move it away and accept the loss with `empd run {ACCEPT_FLAG}`"
    )


def _is_disk_full(error: sqlite3.Error) -> bool:
    # EFBIG and EDQUOT come as an I/O error of a write; space helps there as well, and one more try costs nothing.
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _as_journal_error(path: Path, error: Exception) -> JournalError:
    """What kept a journal from opening: its surroundings, or what stands in the file."""
    if isinstance(error, JournalError):
        return error
    if isinstance(error, OSError) or _code(error) & 0xFF in _SURROUNDINGS:
        return JournalError(f"{path}: cannot be opened: {error}")
    return JournalDamaged(f"{path}: {error}. {_advice(path)}")


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
