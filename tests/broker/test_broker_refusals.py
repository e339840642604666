"""The event stream to a consumer that does not read for a while, and to one that is gone, without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from empd.broker.stream import Stream
from empd.clock import NS_PER_S
from empd.store.journal import Row, SqliteJournal
from empd.wire import frames
from empd.wire.codec import decode_for_client

ME = b"me"


class Wire:
    """Stands in for the router: takes frames, or refuses them."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.refusing = self.gone = False

    def send(self, identity: bytes, frame: bytes) -> bool:
        if not self.refusing:
            self.taken.append(decode_for_client(frame))
        return not self.refusing

    def seqs(self) -> list[int]:
        return [row[0] for frame in self.taken if isinstance(frame, frames.Rows) for row in frame.rows]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal.open(tmp_path / "journal.db", durability="os", reserve_bytes=0)
    yield journal
    journal.close()


def commit(journal: SqliteJournal, count: int) -> list[Row]:
    rows = [Row(journal.last_seq + 1 + i, 1, 1, 0, b"x") for i in range(count)]
    journal.append(rows)
    journal.commit()
    return rows


def test_a_consumer_that_did_not_read_goes_on_where_it_was(journal: SqliteJournal) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    stream.subscribe(ME, frames.Subscribe("history", 1))
    wire.refusing = True
    now_ns = NS_PER_S
    for _ in range(5):
        wanted_ns = stream.feed(commit(journal, 100), now_ns)
        assert wanted_ns is not None
        assert wanted_ns > now_ns, "it is tried again, but not without pause"
        now_ns = wanted_ns
    assert stream.cursors() == {"history": 0}, "trimming still waits for it"
    wire.refusing = False
    while wanted_ns is not None:
        now_ns = max(now_ns, wanted_ns)
        wanted_ns = stream.feed([], now_ns)
    assert wire.seqs() == list(range(1, 501))


def test_a_reset_that_was_refused_is_told_later(journal: SqliteJournal) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    commit(journal, 20)
    journal.carry_and_trim([], 10)
    wire.refusing = True
    stream.subscribe(ME, frames.Subscribe("late", 1))
    assert stream.feed([], NS_PER_S) is not None
    wire.refusing = False
    stream.feed([], 2 * NS_PER_S)
    assert wire.taken[0] == frames.Reset("late", 11)
    assert wire.seqs() == list(range(11, 21))


def test_a_consumer_that_is_gone_is_forgotten(journal: SqliteJournal) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    stream.subscribe(ME, frames.Subscribe("history", 1))
    wire.refusing = wire.gone = True
    assert stream.feed(commit(journal, 3), NS_PER_S) is None
    assert stream.cursors() == {}


def test_what_was_just_committed_is_fed_without_reading_it_back(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    stream.subscribe(ME, frames.Subscribe("history", 1))
    monkeypatch.setattr(journal, "read_from", lambda seq, limit: pytest.fail("read back"))
    assert stream.feed(commit(journal, 2), NS_PER_S) is None
    assert wire.seqs() == [1, 2]
    wanted_ns = None
    for _ in range(3):
        wanted_ns = stream.feed(commit(journal, 2), NS_PER_S + 1)
    assert wire.seqs() == [1, 2], "the rest is gathered"
    assert wanted_ns is not None
    assert stream.feed([], wanted_ns) is None
    assert wire.seqs() == list(range(1, 9))


def large_and_small(journal: SqliteJournal) -> list[Row]:
    """A row of 3 MiB of kind 1, and one of kind 2."""
    rows = [Row(journal.last_seq + 1, 1, 1, 0, b"x" * (3 << 20)), Row(journal.last_seq + 2, 1, 2, 0, b"wanted")]
    journal.append(rows)
    journal.commit()
    return rows


def test_what_nobody_wants_is_neither_kept_nor_read_back(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    stream.subscribe(ME, frames.Subscribe("history", 1, kinds=[2]))
    monkeypatch.setattr(journal, "read_from", lambda seq, limit: pytest.fail("read back"))
    wanted_ns = stream.feed(large_and_small(journal), NS_PER_S)
    for _ in range(3):
        wanted_ns = stream.feed(large_and_small(journal), NS_PER_S + 1)
    assert wire.seqs() == [2]
    assert wanted_ns is not None
    assert stream.feed([], wanted_ns) is None
    assert wire.seqs() == [2, 4, 6, 8]


def test_a_consumer_that_comes_later_gets_all_of_what_others_did_not_want(journal: SqliteJournal) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    stream.subscribe(ME, frames.Subscribe("history", 1, kinds=[2]))
    stream.feed(commit(journal, 1), NS_PER_S)
    stream.feed(commit(journal, 2), NS_PER_S + 1)
    wire.refusing = True  # the row of kind 2 waits, and so the others are kept
    rows = [Row(4, 1, 2, 0, b"wanted")]
    journal.append(rows)
    journal.commit()
    stream.feed(rows, 2 * NS_PER_S)
    wire.refusing = False
    stream.subscribe(b"other", frames.Subscribe("", 2))
    stream.feed([], 3 * NS_PER_S)
    told = [row for frame in wire.taken for row in frame.rows]
    assert [row[4] for row in told] == [b"wanted", b"x", b"x", b"wanted"]


@pytest.mark.parametrize("count", [1, 200], ids=["few", "more than are kept"])
def test_rows_that_were_not_kept_are_read_from_the_journal(journal: SqliteJournal, count: int) -> None:
    wire = Wire()
    stream = Stream(wire, journal)  # type: ignore[arg-type]
    stream.subscribe(ME, frames.Subscribe("history", 1))
    stream.feed(commit(journal, 1), NS_PER_S)
    wire.refusing = True
    stream.feed(commit(journal, 2), 2 * NS_PER_S)
    journal.carry_and_trim([Row(4, 1, 16, 0, b"carried")], 1)  # a row that no pass has decided
    stream.feed(commit(journal, count), 2 * NS_PER_S + 1)
    wire.refusing = False
    wanted_ns: int | None = 3 * NS_PER_S
    while wanted_ns is not None:
        wanted_ns = stream.feed([], wanted_ns)
    assert wire.seqs() == list(range(1, 5 + count))
