"""Of what a job costs the broker: what its journal takes.

The daemon's own rows, seen as they are committed, are appended and committed again by this process, in as many
commits, to a journal of its own on the same disk. Trimming is not in it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from empd.bench.events import Events
from empd.bench.running import BenchError, Running, wait_until
from empd.store.journal import Row, SqliteJournal
from empd.wire.frames import Reset, Rows

RESERVE_BYTES = 1 << 20
ATTEMPTS = 3


class Written(Events):
    """The rows that a daemon commits from now on."""

    def __init__(self, daemon: Running) -> None:
        super().__init__(daemon)
        self._rows: list[Row] = []
        self._gaps = 0

    def take(self, frame: Rows | Reset) -> None:
        """Keeps the rows."""
        if isinstance(frame, Reset):
            self._gaps += 1
        else:
            self._rows += [Row(*row) for row in frame.rows]

    def so_far(self) -> tuple[list[Row], int] | None:
        """(the rows until now, in how many commits); None when some were trimmed before they came."""
        with self._daemon.client() as client:
            journal = client.status()["journal"]
        wait_until(lambda: self._gaps or (self._rows and self._rows[-1].seq >= journal["last_seq"]), "all rows")
        return None if self._gaps else (list(self._rows), journal["commits"] - self.journal["commits"])


def journal_us(daemon: Running, place: str, run: Callable[[int], object], jobs: int, runs: int) -> list[float]:
    """µs of CPU for each of the jobs that `run` has done, one for each of `runs`. Raises BenchError when the journal is
    trimmed again and again before its rows are read."""
    for _ in range(ATTEMPTS):
        with Written(daemon) as written:
            run(jobs)
            found = written.so_far()
        if found is not None:
            return [again_s(*found, place) * 1e6 / jobs for _ in range(runs)]
    raise BenchError("the journal was trimmed before its rows were read")


def again_s(rows: Sequence[Row], commits: int, place: str) -> float:
    """Seconds of CPU for these rows in so many commits to a new journal."""
    each = -(-len(rows) // max(commits, 1))
    numbered = [row._replace(seq=seq) for seq, row in enumerate(rows, 1)]
    with tempfile.TemporaryDirectory(prefix="empd-bench-", dir=place) as directory:
        journal = SqliteJournal.open(Path(directory) / "journal.db", durability="fsync", reserve_bytes=RESERVE_BYTES)
        begun_s = time.thread_time()
        for start in range(0, len(numbered), each):
            journal.append(numbered[start : start + each])
            journal.commit()
        used_s = time.thread_time() - begun_s
        journal.close()
    return used_s
