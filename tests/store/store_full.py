"""A full disk, met by a journal: on a small file system mounted at the folder, or under a limit on file sizes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from empd.errors import JournalError
from empd.store import audit
from empd.store.journal import Row, SqliteJournal
from empd.store.reserve import DiskReserve

DISK_BYTES = 24 << 20
RESERVE_BYTES = 6 << 20
BODY = b"x" * 60_000


class LimitedReserve(DiskReserve):
    """Stands for the space where file sizes are limited instead: giving it up lifts the limit a little."""

    def release(self) -> bool:
        released = super().release()
        if released:
            set_limit(DISK_BYTES)
        return released


def set_limit(size_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def main(mode: str, folder: Path) -> None:
    """Fills the disk and asserts what a journal can still do on it."""
    path = folder / "journal.db"
    if mode == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True)
    journal = SqliteJournal.open(path, durability="fsync", reserve_bytes=RESERVE_BYTES)
    if mode == "limit":
        journal._reserve.__class__ = LimitedReserve
        set_limit(DISK_BYTES - RESERVE_BYTES)
    assert journal.reserve_held
    while journal.reserve_held:  # the commit that fills the disk succeeds, out of the reserve
        seq = journal.last_seq + 1
        journal.append([Row(seq, seq, 1, 1, BODY)])
        assert journal.commit() == seq
        assert seq < 1000, "the disk never filled"
    full_at = journal.last_seq
    assert full_at * len(BODY) > DISK_BYTES // 8
    assert not journal.restore_reserve() or mode == "limit"
    done = [Row(full_at + 1 + n, 0, 2, 2, b"done") for n in range(200)]
    for row in done:
        journal.append([row])
        journal.commit()
    assert journal.read_from(full_at + 1, 1000) == done
    for upto in range(20, full_at, 20):
        journal.carry_and_trim([Row(journal.last_seq + 1, 0, 3, 3, b"carry")], upto)
    journal.carry_and_trim([], full_at)
    journal.idle_work()
    assert journal.restore_reserve()
    assert journal.reserve_held
    assert audit.verify(path).problems == []
    fill_until_it_breaks(journal, path)


def fill_until_it_breaks(journal: SqliteJournal, path: Path) -> None:
    """Goes on past the reserve: the commit that cannot be made is refused, and nothing before it is lost."""
    try:
        while journal.last_seq < 10_000:
            journal.append([Row(journal.last_seq + 1, 0, 1, 1, BODY)])
            journal.commit()
        raise AssertionError("the disk never filled for good")
    except JournalError as error:
        assert "commit failed" in str(error)
    last_seq = journal.last_seq
    for call in (journal.commit, lambda: journal.carry_and_trim([], last_seq)):
        try:
            call()
            raise AssertionError("a journal went on after a failed commit")
        except JournalError:
            pass
    journal.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = SqliteJournal.open(path, durability="fsync", reserve_bytes=RESERVE_BYTES)
    assert again.last_seq == last_seq
    assert [row.seq for row in again.read_from(0, 10_000)] == list(range(again.first_seq, last_seq + 1))
    again.close()
    print("whole")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
