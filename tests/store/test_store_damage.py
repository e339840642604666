"""Journals that are not as they were written: damaged, cut, exchanged, newer, on a full disk."""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.errors import JournalDamaged, JournalError, JournalNewer
from empd.store import audit, mark
from empd.store.journal import ACCEPT_FLAG, Row, SqliteJournal

HERE = Path(__file__).parent
Opener = Callable[..., SqliteJournal]


def fill(journal: SqliteJournal, count: int, body: bytes = b"fact") -> None:
    for _ in range(count):
        seq = journal.last_seq + 1
        journal.append([Row(seq, seq, 1, 2, body)])
        journal.commit()


def files_of(path: Path) -> dict[str, bytes]:
    """Content of all files around a journal; the shared-memory index is SQLite's scratch."""
    return {
        file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file() and file.suffix != ".db-shm"
    }


def edit(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


@functools.cache
def sample() -> tuple[bytes, list[Row]]:
    """The bytes of a small journal that was trimmed, and its rows."""
    with tempfile.TemporaryDirectory(prefix="empd-", dir="/dev/shm") as folder:
        path = Path(folder, "journal.db")
        journal = SqliteJournal.open(path, durability="memory", reserve_bytes=0)
        rows = [Row(seq, seq, seq % 5, -seq, bytes([seq]) * (seq * 97 % 3000)) for seq in range(1, 41)]
        rows[20] = Row(21, 21, 1, 1, b"z" * 40_000)
        journal.append(rows)
        journal.commit()
        journal.carry_and_trim([], 7)
        journal.close()
        return path.read_bytes(), rows[7:]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_is_noticed_or_changes_nothing(data: st.DataObject) -> None:
    content, rows = sample()
    spot = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, 200), st.integers(16_384, 17_000)))
    flip = data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory(prefix="empd-", dir="/dev/shm") as folder:
        path = Path(folder, "journal.db")
        path.write_bytes(content[:spot] + bytes([content[spot] ^ flip]) + content[spot + 1 :])
        copy = Path(folder, "copy.db")
        shutil.copyfile(path, copy)
        try:
            journal = SqliteJournal.open(path, durability="memory", reserve_bytes=0)
            try:
                assert journal.read_from(0, 1000) == rows
                assert (journal.first_seq, journal.last_seq) == (8, 40)
            finally:
                journal.close()
        except JournalError as error:
            assert "journal" in str(error)
            noticed = True
        else:
            noticed = False
        try:
            problems = audit.verify(copy).problems
            saved = list(audit.export(copy))
        except JournalError:
            assert noticed
        except sqlite3.Error as error:
            raise AssertionError(f"byte {spot}: {error}") from error
        else:
            assert problems or not noticed
            assert [row for row in saved if row not in rows] == []


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(sample()[0]) - 1))
def test_a_truncated_journal_is_noticed(length: int) -> None:
    with tempfile.TemporaryDirectory(prefix="empd-", dir="/dev/shm") as folder:
        path = Path(folder, "journal.db")
        journal = SqliteJournal.open(path, durability="memory", reserve_bytes=0)
        journal.append([Row(seq, 0, 0, 0, b"y" * 900) for seq in range(1, 300)])
        journal.commit()
        journal.close()
        content = path.read_bytes()
        path.write_bytes(content[: length * len(content) // len(sample()[0])])
        with pytest.raises(JournalDamaged):  # wherever the damage is met first
            damaged = SqliteJournal.open(path, durability="memory", reserve_bytes=0)
            try:
                damaged.read_from(0, 1000)
            finally:
                damaged.close()


def test_a_file_that_is_no_database_is_named(path: Path, open_journal: Opener) -> None:
    path.write_text("these are no pages of a database, but a line of text " * 100)
    with pytest.raises(JournalDamaged, match="not a database"):
        open_journal()
    with pytest.raises(JournalDamaged, match="not a database"):
        list(audit.export(path))
    assert audit.verify(path).problems


def test_making_a_journal_that_was_cut_off_is_finished(path: Path, open_journal: Opener) -> None:
    path.touch()
    fill(open_journal(), 1)
    path.with_suffix(".mark").unlink()
    path.unlink()
    edit(path, "PRAGMA journal_mode = WAL")  # the header is there, the tables are not
    assert path.stat().st_size > 0
    fill(open_journal(), 1)
    assert audit.verify(path).problems == []


def test_a_log_without_its_database_is_noticed(path: Path, open_journal: Opener) -> None:
    journal = open_journal()
    fill(journal, 1)
    log = path.with_name("journal.db-wal")
    content = log.read_bytes()
    journal.close()
    path.unlink()
    path.with_suffix(".mark").unlink()
    log.write_bytes(content)
    with pytest.raises(JournalDamaged, match=r"journal\.db is missing"):
        open_journal()
    assert log.read_bytes() == content
    assert open_journal(accept_loss=True).last_seq == 0


def test_a_place_that_cannot_be_written_is_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened") as caught:
        SqliteJournal.open(tmp_path / "gone" / "journal.db", durability="os", reserve_bytes=0)
    assert not isinstance(caught.value, JournalDamaged)


def test_the_reserve_is_disk_space(path: Path, open_journal: Opener) -> None:
    journal = open_journal(reserve_bytes=3 << 20)
    file = path.with_suffix(".reserve")
    assert journal.reserve_held
    assert file.stat().st_blocks * 512 >= 3 << 20
    assert journal.release_reserve()
    assert not journal.reserve_held
    assert file.stat().st_blocks == 0
    assert not journal.release_reserve()
    assert journal.restore_reserve()
    assert file.stat().st_blocks * 512 >= 3 << 20
    journal.close()
    smaller = open_journal(reserve_bytes=1 << 20)
    assert smaller.reserve_held
    assert file.stat().st_size == 1 << 20
    smaller.close()
    none = open_journal(reserve_bytes=0)
    assert none.reserve_held
    assert not none.release_reserve()


def test_somebody_elses_database_is_left_alone(path: Path, open_journal: Opener) -> None:
    edit(path, "CREATE TABLE theirs (x)")
    before = files_of(path)
    with pytest.raises(JournalDamaged, match="not a journal of empd"):
        open_journal()
    assert files_of(path) == before


@pytest.mark.parametrize("crashed", [False, True])
def test_a_newer_journal_is_refused_before_any_write(
    path: Path, open_journal: Opener, tmp_path: Path, crashed: bool
) -> None:
    journal = open_journal()
    fill(journal, 3)
    edit(path, "PRAGMA user_version = 2")
    if not crashed:
        journal.close()
    place = tmp_path / "copy" / path.name
    place.parent.mkdir()
    for name, content in files_of(path).items():  # with a write-ahead log, where a crash left one
        (place.parent / name).write_bytes(content)
    before = files_of(place)
    assert any(name.endswith("-wal") and content for name, content in before.items()) == crashed
    with pytest.raises(JournalNewer, match="schema 2"):
        SqliteJournal.open(place, durability="os", reserve_bytes=1 << 20)
    with pytest.raises(JournalNewer):
        audit.verify(place)
    with pytest.raises(JournalNewer):
        list(audit.export(place))
    after = files_of(place)
    assert {name: content for name, content in after.items() if content} == before


def test_a_damaged_row_is_named(path: Path, open_journal: Opener) -> None:
    journal = open_journal()
    fill(journal, 5)
    edit(path, "UPDATE rows SET body = x'00' WHERE seq = 4")
    assert [row.seq for row in journal.read_from(1, 3)] == [1, 2, 3]
    with pytest.raises(JournalDamaged, match="row 4 is damaged"):
        journal.read_from(1, 10)
    found = audit.verify(path)
    assert (found.damaged_rows, found.rows, found.missing_rows) == (1, 5, 0)
    assert any("row 4 is damaged" in line for line in found.problems)
    assert [row.seq for row in audit.export(path)] == [1, 2, 3, 5]


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_a_missing_row_is_noticed_at_open(path: Path, open_journal: Opener, gone: int) -> None:
    journal = open_journal()
    fill(journal, 5)
    edit(path, f"DELETE FROM rows WHERE seq = {gone}")
    with pytest.raises(JournalDamaged, match="missing"):
        journal.read_from(1, 10)
    journal.close()
    with pytest.raises(JournalDamaged, match="missing"):
        open_journal()
    found = audit.verify(path)
    assert (found.missing_rows, found.rows) == (1, 4)
    assert any(f"rows {gone} to {gone}" in line for line in found.problems)


def test_a_cut_log_is_noticed_and_can_be_accepted(path: Path, open_journal: Opener, tmp_path: Path) -> None:
    journal = open_journal(durability="fsync")
    fill(journal, 5)
    journal.idle_work()
    fill(journal, 4)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("journal.db", "journal.mark"):  # everything but the write-ahead log
        shutil.copyfile(path.parent / name, crashed / name)
    cut = crashed / "journal.db"
    with pytest.raises(JournalDamaged, match=f"rows 6 to 9 were committed and are missing.*{ACCEPT_FLAG}"):
        SqliteJournal.open(cut, durability="fsync", reserve_bytes=0)
    assert any("rows 6 to 9" in line for line in audit.verify(cut).problems)
    accepted = SqliteJournal.open(cut, durability="fsync", reserve_bytes=0, accept_loss=True)
    assert "rows 6 to 9" in accepted.loss
    assert accepted.instance != journal.instance
    assert accepted.last_seq == 5
    accepted.close()
    again = SqliteJournal.open(cut, durability="fsync", reserve_bytes=0)
    assert (again.loss, again.last_seq, again.instance) == ("", 5, accepted.instance)
    again.close()


def test_a_vanished_or_exchanged_journal_is_noticed(path: Path, open_journal: Opener) -> None:
    journal = open_journal()
    fill(journal, 3)
    journal.close()
    path.unlink()
    with pytest.raises(JournalDamaged, match="is not the journal that was written here last"):
        open_journal()
    assert open_journal(accept_loss=True).last_seq == 0
    assert open_journal().loss == ""


def test_a_reboot_may_take_what_was_not_synced(path: Path, open_journal: Opener) -> None:
    journal = open_journal(durability="os")
    fill(journal, 3)
    journal.close()
    known = mark.read(path.with_suffix(".mark"))
    assert known == known._replace(last_seq=3, durability=1) if known else False
    written = mark.MarkFile(path.with_suffix(".mark"))
    written.write(9, known._replace(boot32=known.boot32 ^ 1))
    written.close()
    reopened = open_journal()
    assert reopened.last_seq == 3
    assert "rows 4 to 9" in reopened.loss
    reopened.close()
    written = mark.MarkFile(path.with_suffix(".mark"))
    assert written.newest
    written.write(9, written.newest)
    written.close()
    with pytest.raises(JournalDamaged, match="rows 4 to 9"):  # without a reboot nothing may be gone
        open_journal()


def test_a_torn_mark_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "journal.mark"
    file = mark.MarkFile(path)
    assert file.newest is None
    for seq in range(1, 70_000):  # past the wrap of its counter
        file.write(seq, mark.Mark(0, 7, 8, 0))
    file.close()
    newest = mark.read(path)
    assert newest
    assert newest.last_seq == 69_999
    content = bytearray(path.read_bytes())
    at = (newest.turn & 1) * mark.RECORD_BYTES
    for cut in range(mark.RECORD_BYTES):
        torn = bytearray(content)
        torn[at + cut] ^= 0x5A
        path.write_bytes(torn)
        left = mark.read(path)
        assert left
        assert left.last_seq == 69_998
    path.write_bytes(b"\0" * 48)
    assert mark.read(path) is None


def test_verify_and_export_work_beside_the_writer(path: Path, open_journal: Opener) -> None:
    with pytest.raises(JournalError, match="there is no journal"):
        audit.verify(path)
    journal = open_journal()
    for count in (1, 20, 50):
        fill(journal, count, b"12345")
        found = audit.verify(path)
        assert (found.problems, found.rows, found.last_seq) == ([], journal.last_seq, journal.last_seq)
        assert (found.body_bytes, found.kinds) == (5 * found.rows, {1: found.rows})
        assert [row.seq for row in audit.export(path)] == list(range(1, journal.last_seq + 1))


def can_mount(prefix: list[str], folder: Path) -> bool:
    command = [*prefix, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("wanted", ["mount", "limit"])
def test_a_full_disk_still_takes_completions_and_trims(tmp_path: Path, wanted: str) -> None:
    mode, prefix = "limit", []
    for namespace in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if wanted == "mount" and can_mount(namespace, tmp_path):
            mode, prefix = "mount", namespace
            break
    done = subprocess.run(
        [*prefix, sys.executable, HERE / "store_full.py", mode, tmp_path],
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
