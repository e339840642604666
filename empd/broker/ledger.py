"""The journal as the broker uses it: replay at the start, one commit a pass, trimming, admission by free disk."""

from __future__ import annotations

from empd.clock import NS_PER_S, Instant
from empd.queue import carry
from empd.queue.machine import Pending, Queue
from empd.queue.rows import Fact, Kind, decode_body
from empd.store.journal import Row, SqliteJournal

REPLAY_ROWS = 512
TRIM_ROWS = 400
TRIM_JOBS_MAX = 2_000
TRIM_PAYLOAD_BYTES = 8 << 20
_JOB_BYTES = 128
_KEY_BYTES = 128
_REST_AFTER_NS = 3 * NS_PER_S
TRIM_START_BYTES = 48 << 20
"""A journal below this is left alone: trimming costs more than it gives."""


class Ledger:
    """One journal, one queue."""

    def __init__(self, journal: SqliteJournal, queue: Queue, disk_free_min_bytes: int, journal_bytes_max: int) -> None:
        self.journal = journal
        self._queue = queue
        self._disk_free_min_bytes = disk_free_min_bytes
        self._journal_bytes_max = journal_bytes_max
        self._checked_ns = 0
        self._committed_ns = 0
        self._worked = False
        self.closed = ""
        self.size_bytes = 0
        self.free_bytes = 0
        self.commits = 0
        self.trimmed_rows = 0

    def replay(self) -> int:
        """Applies every row of the journal to the queue; returns how many."""
        seq = self.journal.first_seq
        self._queue.state.seq = seq - 1
        count = 0
        while rows := self.journal.read_from(seq, REPLAY_ROWS):
            for row in rows:
                body = decode_body(row.kind, row.body)
                self._queue.replay(row.seq, row.at_ns, Fact(Kind(row.kind), body, row.origin))
            count += len(rows)
            seq = rows[-1].seq + 1
        return count

    def commit(self, now: Instant) -> list[Row]:
        """Makes the pass's facts durable and returns them as rows. Raises JournalError; then nothing may be sent."""
        pending = self._queue.pending
        if not pending:
            return []
        rows = encode(pending)
        pending.clear()
        self.journal.append(rows)
        self.journal.commit()
        self.commits += 1
        self._worked = True
        self._committed_ns = now.mono_ns
        return rows

    def check_disk(self, now: Instant) -> None:
        """Once a second: how large the journal is, and whether new jobs can be taken."""
        if now.mono_ns - self._checked_ns < NS_PER_S:
            return
        self._checked_ns = now.mono_ns
        self.size_bytes = self.journal.size_bytes()
        self.free_bytes = self.journal.free_disk_bytes()
        if self.free_bytes < self._disk_free_min_bytes:
            self.closed = (
                f"{self.free_bytes >> 20} MiB of disk are free, below disk_free_min_bytes "
                f"({self._disk_free_min_bytes >> 20} MiB); what is accepted goes on"
            )
        elif self.size_bytes > self._journal_bytes_max + self._journal_bytes_max // 4:
            self.closed = (
                f"the journal holds {self.size_bytes >> 20} MiB that cannot be trimmed, above journal_bytes_max "
                f"({self._journal_bytes_max >> 20} MiB); what is accepted goes on"
            )
        else:
            self.closed = ""
        if not self.journal.reserve_held and not self.journal.restore_reserve():
            self.closed = self.closed or "the disk was full and the reserve is in use; what is accepted goes on"

    def rest(self, now: Instant) -> None:
        """Nothing happened for a while: lets the journal put its files in order, once."""
        if self._worked and now.mono_ns - self._committed_ns > _REST_AFTER_NS:
            self._worked = False
            self.journal.idle_work()
            self.size_bytes = self.journal.size_bytes()

    def trim(self, consumed_seq: int, now: Instant) -> bool:
        """Removes some rows that all consumers have processed (past `journal_bytes_max`: whether or not they have).
        Returns True when there is more to trim.

        Only a journal that is mostly past is trimmed: what lives is written again, so that a large backlog would
        otherwise be copied for ever.
        """
        journal = self.journal
        live_bytes = self._live_bytes()
        full = self.size_bytes >= self._journal_bytes_max and self.size_bytes > live_bytes + live_bytes // 4
        if not full and self.size_bytes < TRIM_START_BYTES + 2 * live_bytes:
            return False
        if full:
            consumed_seq = journal.last_seq
        newest = min(consumed_seq, journal.last_seq - 1, journal.first_seq + TRIM_ROWS - 1)
        upto = carry.trim_point(self._queue.state, journal.first_seq, newest, (TRIM_JOBS_MAX, TRIM_PAYLOAD_BYTES))
        if upto < journal.first_seq:
            return False
        before = journal.first_seq
        journal.carry_and_trim(encode(self._queue.carry(upto, now)), upto)
        self.trimmed_rows += journal.first_seq - before
        self.size_bytes = journal.size_bytes()
        return newest < consumed_seq

    def _live_bytes(self) -> int:
        state = self._queue.state
        return state.payload_bytes + _JOB_BYTES * len(state.jobs) + _KEY_BYTES * len(state.keys)


def encode(pending: Pending) -> list[Row]:
    """Facts as journal rows."""
    return [Row(seq, at_ns, fact.kind, fact.origin, fact.encoded()) for seq, at_ns, fact in pending]
