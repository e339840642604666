"""A writer that is killed: commits as fast as it can and acknowledges each commit on stdout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from empd.store.journal import Row, SqliteJournal


def body_of(seq: int) -> bytes:
    """The body of a row, so that a reader knows what it must be."""
    return seq.to_bytes(8, "little") * (seq % 700)


def main(path: Path, durability: str) -> None:
    """Commits 1 to 5 rows at a time; trims now and then; writes each committed seq as 8 bytes."""
    journal = SqliteJournal.open(path, durability=durability, reserve_bytes=0)  # type: ignore[arg-type]
    os.write(1, journal.last_seq.to_bytes(8, "little"))
    while True:
        first = journal.last_seq + 1
        rows = [Row(seq, seq, 1, 2, body_of(seq)) for seq in range(first, first + 1 + first % 5)]
        if first % 50 == 0:
            journal.carry_and_trim(rows, first - 20)
        else:
            journal.append(rows)
            journal.commit()
        os.write(1, journal.last_seq.to_bytes(8, "little"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
