"""The journal's five methods, against a model and against kill -9."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_writer import body_of

from empd.errors import JournalError
from empd.store import audit
from empd.store.journal import Row, SqliteJournal

HERE = Path(__file__).parent
Opener = Callable[..., SqliteJournal]


def rows_from(first: int, count: int, body: bytes = b"body") -> list[Row]:
    return [Row(seq, 10 * seq, seq % 7, -seq, body) for seq in range(first, first + count)]


def test_what_is_committed_is_read_again(open_journal: Opener) -> None:
    journal = open_journal(durability="fsync")
    rows = [Row(1, 5, 2, -3, b""), Row(2, -(1 << 63), 0, (1 << 63) - 1, bytes(range(256)) * 300)]
    journal.append(rows)
    assert journal.read_from(1, 10) == []
    assert (journal.first_seq, journal.last_seq) == (1, 0)
    assert journal.commit() == 2
    assert journal.read_from(1, 10) == rows
    assert journal.read_from(2, 10) == rows[1:]
    assert journal.read_from(1, 1) == rows[:1]
    assert journal.read_from(3, 10) == []
    name = journal.instance
    assert len(bytes.fromhex(name)) == 16
    journal.close()
    again = open_journal()
    assert (again.read_from(0, 10), again.last_seq, again.instance, again.loss) == (rows, 2, name, "")


def test_seq_must_go_on_without_a_gap(open_journal: Opener) -> None:
    journal = open_journal()
    journal.append(rows_from(1, 2))
    for wrong in ([*rows_from(3, 1), *rows_from(5, 1)], rows_from(2, 1), rows_from(4, 1)):
        with pytest.raises(ValueError, match="does not follow"):
            journal.append(wrong)
    with pytest.raises(ValueError, match="row 3"):
        journal.append([Row(3, 1 << 63, 0, 0, b"")])
    journal.append(rows_from(3, 1))
    assert journal.commit() == 3
    assert journal.read_from(1, 9) == rows_from(1, 3)


def test_a_commit_of_nothing_is_fine(open_journal: Opener) -> None:
    journal = open_journal()
    assert journal.commit() == 0
    journal.append([])
    assert journal.commit() == 0


def test_trimming_takes_a_prefix_and_keeps_the_numbers(open_journal: Opener) -> None:
    journal = open_journal()
    journal.append(rows_from(1, 10))
    journal.commit()
    journal.append(rows_from(11, 1))  # buffered rows go with the same transaction
    journal.carry_and_trim(rows_from(12, 2), 6)
    assert (journal.first_seq, journal.last_seq) == (7, 13)
    assert journal.read_from(1, 99) == rows_from(7, 7)
    with pytest.raises(ValueError, match="cannot trim"):
        journal.carry_and_trim([], 14)
    journal.carry_and_trim([], 13)
    assert (journal.first_seq, journal.last_seq, journal.read_from(0, 9)) == (14, 13, [])
    journal.close()
    empty = open_journal()
    assert (empty.first_seq, empty.last_seq) == (14, 13)
    empty.append(rows_from(14, 1))
    assert empty.commit() == 14
    empty.carry_and_trim([], 3)  # what is trimmed already stays trimmed
    assert empty.first_seq == 14


def test_a_closed_journal_commits_nothing(open_journal: Opener) -> None:
    journal = open_journal()
    journal.append(rows_from(1, 1))
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.commit()
    assert open_journal().last_seq == 0


def test_idle_work_gives_the_disk_back(open_journal: Opener, path: Path) -> None:
    journal = open_journal()
    for first in range(1, 1001, 50):
        journal.append(rows_from(first, 50, b"x" * 65536))
        journal.commit()
    full_bytes = journal.size_bytes()
    assert full_bytes > 1000 * 65536
    for upto in range(200, 1001, 200):
        journal.carry_and_trim([], upto)
    assert journal.size_bytes() < full_bytes / 2
    journal.idle_work()
    log_bytes = 8 << 20  # laid out once in the log and once in the file, and never more than that
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 2 * log_bytes + (1 << 20)
    journal.append(rows_from(1001, 1))
    assert journal.commit() == 1001
    assert audit.verify(path).problems == []


def pages_in_log(path: Path) -> int:
    """The frames of the write-ahead log, as SQLite's index of it says them (mxFrame in its file format)."""
    with path.with_name(path.name + "-shm").open("rb") as index:
        return int.from_bytes(index.read(20)[16:], sys.byteorder)


@pytest.mark.parametrize("size", [500, 30_000])
@pytest.mark.parametrize("between", [True, False], ids=["between commits", "in commits"])
def test_what_is_moved_into_the_database_at_once_is_bounded(
    open_journal: Opener, path: Path, size: int, between: bool
) -> None:
    journal = open_journal()
    log = path.with_name(path.name + "-wal")
    laid_out_bytes = log.stat().st_size
    moved: list[int] = []
    before = 0
    for seq in range(1, 20_000_000 // (size + 4_000)):
        journal.append(rows_from(seq, 1, os.urandom(size)))
        journal.commit()
        if between:
            journal.checkpoint()
        pages = pages_in_log(path)
        if pages < before:  # begun again: all that stood there was moved before
            moved.append(before * 4_096)
        before = pages
    own_bytes = size + 4 * 4_096
    assert len(moved) >= 3
    assert min(moved) > 1 << 20
    assert max(moved) <= ((8 << 20) // 3 if between else (4 << 20) + own_bytes)
    assert log.stat().st_size == laid_out_bytes >= 8 << 20


def test_a_checkpoint_after_a_failed_commit_does_nothing(open_journal: Opener, path: Path) -> None:
    journal = open_journal()
    body = os.urandom(3 << 20)
    journal.append(rows_from(1, 1, body))
    journal.commit()
    journal._failed = "the disk said no"
    journal.checkpoint()
    assert body[-64:] not in path.read_bytes()
    journal._failed = ""
    journal.checkpoint()
    assert body[-64:] in path.read_bytes()


def test_free_disk_is_what_the_file_system_says(open_journal: Opener, path: Path) -> None:
    status = os.statvfs(path.parent)
    assert abs(open_journal().free_disk_bytes() - status.f_bavail * status.f_frsize) < 1 << 30


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 4)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("trim"), st.integers(0, 12)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("idle"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(steps=steps, bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=5), start=st.integers(-1, 40))
def test_any_sequence_of_calls_equals_a_list(steps: list[tuple[str, int]], bodies: list[bytes], start: int) -> None:
    with tempfile.TemporaryDirectory(prefix="empd-", dir="/dev/shm") as folder:
        path = Path(folder, "journal.db")
        journal = SqliteJournal.open(path, durability="memory", reserve_bytes=0)
        kept: list[Row] = []
        buffered: list[Row] = []
        last, trimmed = 0, 0
        for verb, number in steps:
            following = last + len(buffered) + 1
            fresh = [
                Row(seq, seq * 3, seq % 5, -seq, bodies[seq % len(bodies)])
                for seq in range(following, following + number)
            ]
            if verb == "append":
                journal.append(fresh)
                buffered += fresh
            elif verb == "commit":
                last += len(buffered)
                assert journal.commit() == last
                kept, buffered = kept + buffered, []
            elif verb == "trim":
                upto = min(last, trimmed + number)
                carries = fresh[:2]
                journal.carry_and_trim(carries, upto)
                kept = [row for row in kept + buffered + carries if row.seq > upto]
                last += len(buffered) + len(carries)
                trimmed, buffered = upto, []
            elif verb == "reopen":
                journal.close()
                journal = SqliteJournal.open(path, durability="memory", reserve_bytes=0)
                buffered = []
            else:
                journal.idle_work()
            assert journal.read_from(start, 1000) == [row for row in kept if row.seq >= start]
            assert journal.read_from(trimmed, 3) == kept[:3]
            assert (journal.first_seq, journal.last_seq) == (trimmed + 1, last)
        journal.close()
        found = audit.verify(path)
        assert (found.problems, found.rows, list(audit.export(path))) == ([], len(kept), kept)


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_no_acknowledged_commit_is_lost_by_kill(path: Path, open_journal: Opener, durability: str) -> None:
    chance = random.Random(1)
    acknowledged = 0
    for _ in range(25):
        writer = subprocess.Popen(
            [sys.executable, HERE / "store_writer.py", path, durability],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        )
        assert writer.stdout
        told = b""
        for _ in range(chance.randrange(1, 120)):
            told += writer.stdout.read(8)
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.read()
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        numbers = [int.from_bytes(told[at : at + 8], "little") for at in range(0, len(told) - len(told) % 8, 8)]
        assert numbers[0] >= acknowledged
        acknowledged = numbers[-1]
        journal = open_journal()
        assert journal.last_seq >= acknowledged
        assert journal.loss == ""
        for row in journal.read_from(1, 100_000):
            assert row == Row(row.seq, row.seq, 1, 2, body_of(row.seq))
        journal.close()
    assert acknowledged > 500
    assert audit.verify(path).problems == []
