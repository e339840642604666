"""Guards of the journal that no damage of the file brings into play by itself: taking one out shows."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from empd.errors import JournalDamaged, JournalError
from empd.store.journal import Durability, Row, SqliteJournal


def filled(path: Path, rows: int, durability: Durability = "os") -> SqliteJournal:
    path.parent.mkdir(exist_ok=True)
    journal = SqliteJournal.open(path, durability=durability, reserve_bytes=0)
    journal.append([Row(seq, 1, 1, 1, b"body") for seq in range(1, rows + 1)])
    journal.commit()
    return journal


@pytest.mark.parametrize(("durability", "synchronous"), [("fsync", 2), ("os", 0), ("memory", 0)])
def test_only_fsync_syncs_every_commit(tmp_path: Path, durability: Durability, synchronous: int) -> None:
    journal = filled(tmp_path / "journal.db", 1, durability)
    assert journal._execute("PRAGMA synchronous").fetchone() == (synchronous,)
    journal.close()


def test_after_a_failed_commit_there_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path / "journal.db", 1)
    journal.append([Row(2, 1, 1, 1, b"lost")])

    def fail(trim_to: int | None) -> None:
        raise sqlite3.OperationalError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(journal, "_transact", fail)
        with pytest.raises(JournalError, match="opened anew"):
            journal.commit()
    with pytest.raises(JournalError, match="opened anew"):
        journal.commit()
    assert journal.last_seq == 1
    journal.close()


def test_the_first_row_that_is_missing_is_the_one_named(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.db", 5)
    journal._execute("DELETE FROM rows WHERE seq = 3")
    with pytest.raises(JournalDamaged, match="row 3 is missing"):
        journal.read_from(1, 10)
    journal.close()


def test_a_longer_journal_of_somebody_else_is_noticed(tmp_path: Path) -> None:
    own, other = tmp_path / "own" / "journal.db", tmp_path / "other" / "journal.db"
    filled(own, 2).close()
    filled(other, 9).close()
    shutil.copy(other, own)
    with pytest.raises(JournalDamaged, match="not the journal"):
        SqliteJournal.open(own, durability="os", reserve_bytes=0)
