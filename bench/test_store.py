"""What durable facts cost: journal commits of one and of 16 rows beside a bare SQLite commit, and history in bulk."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from empd.job import JobOptions
from empd.result import FinishedJob
from empd.store.history import Filter, History
from empd.store.journal import Durability, Row, SqliteJournal
from empd.store.record import Ended, to_stored

FRAME = b"x" * 26_000
HISTORY_ROWS = 20_000
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(params=["fsync", "os"])
def durability(request: pytest.FixtureRequest) -> Durability:
    chosen: Durability = request.param
    return chosen


@pytest.fixture
def journal(tmp_path: Path, durability: Durability) -> Iterator[SqliteJournal]:
    opened = SqliteJournal.open(tmp_path / "journal.db", durability=durability, reserve_bytes=1 << 20)
    yield opened
    opened.close()


def commit(journal: SqliteJournal, rows: int, body: bytes) -> int:
    """One pass of the broker's loop, as the journal sees it."""
    first = journal.last_seq + 1
    journal.append([Row(seq, seq, 1, 2, body) for seq in range(first, first + rows)])
    return journal.commit()


def test_bare_commit_of_one_row(benchmark: Any, tmp_path: Path, durability: Durability) -> None:
    """The floor: SQLite's own commit of one row of 100 bytes."""
    connection = sqlite3.connect(tmp_path / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={'FULL' if durability == 'fsync' else 'OFF'}")
    connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body BLOB)")
    benchmark(connection.execute, "INSERT INTO rows (body) VALUES (?)", (b"x" * 100,))
    connection.close()


def test_commit_of_one_row(benchmark: Any, journal: SqliteJournal) -> None:
    assert benchmark(commit, journal, 1, b"x" * 100) == journal.last_seq


def test_commit_of_16_frames(benchmark: Any, journal: SqliteJournal) -> None:
    """16 rows of 26 KB: frames of 256 jobs each."""
    benchmark.pedantic(commit, (journal, 16, FRAME), rounds=300, warmup_rounds=5)
    assert journal.last_seq % 16 == 0 < journal.last_seq


def test_replay(benchmark: Any, journal: SqliteJournal) -> None:
    """400 frames, as 100,000 waiting jobs leave them."""
    for _ in range(25):
        commit(journal, 16, FRAME)
    assert len(benchmark(journal.read_from, 1, 1000)) == 400


def ended(batch: int, jobs: int = HISTORY_ROWS) -> list[Ended]:
    """Frames of 200 jobs."""
    services = ("square", "noop", "image")
    found = []
    for first in range(batch * HISTORY_ROWS, batch * HISTORY_ROWS + jobs, 200):
        frame = first // 200
        options = JobOptions(service=services[frame % 3], customer_id=f"c{frame % 100}" if frame % 10 == 0 else None)
        finished = [
            FinishedJob((1 + n % 4) << 32 | n, 0 if n % 50 else 1, b"r" * 100, START_NS, START_NS + n, 1)
            for n in range(first, first + 200)
        ]
        found.append(to_stored(finished, options, f"gpu{frame % 2}", START_NS + first * 1000))
    return found


def test_history_in_bulk(benchmark: Any, tmp_path: Path) -> None:
    """20,000 rows a transaction onto a growing file."""
    history = History.open(tmp_path / "history.db")
    batches = itertools.count()

    def prepare() -> tuple[tuple[int, list[Ended]], dict[str, Any]]:
        batch = next(batches)
        return (batch + 1, ended(batch)), {}

    benchmark.pedantic(history.apply, setup=prepare, rounds=20)
    if benchmark.stats:  # none where they are only to run (--benchmark-disable)
        benchmark.extra_info["rows_per_s"] = round(HISTORY_ROWS / benchmark.stats.stats.median)
    assert history.stats()["rows"] % HISTORY_ROWS == 0 < history.stats()["rows"]
    history.close()


def test_history_search(benchmark: Any, tmp_path: Path) -> None:
    """A page of 100 failed jobs among 100,000."""
    history = History.open(tmp_path / "history.db")
    history.apply(1, ended(0, 100_000))
    page, _ = benchmark(history.search, Filter(outcome=1), None, 100)
    assert len(page) == 100
    history.close()
