"""Counts from the daemon's own event stream: what was claimed when, and what ended how often."""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

from empd.client import Client
from empd.errors import EmpdError
from empd.job import Outcome
from empd.queue.rows import Kind, decode_body
from empd.wire.frames import Rows

_NS_PER_MS = 1e6


class Claim(NamedTuple):
    """One row of assignments."""

    at_ns: int
    worker: str
    generation: int
    boot: int


class Recorder:
    """Follows the journal in a thread of its own, over restarts of the broker, until `close`."""

    def __init__(self, endpoint: str) -> None:
        self.completions: Counter[int] = Counter()
        self.ends: dict[int, Outcome] = {}
        self.executions = 0
        self.claims: list[Claim] = []
        self.error: EmpdError | None = None
        self._changed = threading.Condition()
        self._client = Client(endpoint, name="empd demo recorder")
        self._thread = threading.Thread(target=self._follow, name="recorder", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for frame in self._client.subscribe("demo", 0, kinds=(Kind.ASSIGNED, Kind.RESULTS)):
                with self._changed:
                    if isinstance(frame, Rows):
                        for _, at_ns, kind, _, body in frame.rows:
                            self._take(at_ns, kind, body)
                    self._changed.notify_all()
        except EmpdError as error:
            self.error = error  # `close`, or a daemon that is gone: what is missing shows in the counts

    def _take(self, at_ns: int, kind: int, body: bytes) -> None:
        row = decode_body(kind, body)
        if kind == Kind.ASSIGNED:
            self.claims.append(Claim(at_ns, row.worker, row.generation, row.first_epoch >> 32))
            return
        for group in row.groups:
            for job in group.jobs:
                self.ends[job.id] = Outcome(job.outcome)
                self.executions += job.attempts
                if job.outcome == Outcome.COMPLETED:
                    self.completions[job.id] += 1

    def wait_for_ends(self, count: int, timeout_s: float) -> bool:
        """Waits until so many jobs have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.ends) >= count, timeout_s)

    def worker_claim_ms(self, killed_ns: int, worker: str, generation: int) -> float | None:
        """From the kill of a worker to the first claim of its replacement."""
        with self._changed:
            return _first(killed_ns, [c for c in self.claims if c.worker == worker and c.generation != generation])

    def broker_claim_ms(self, killed_ns: int, boot: int) -> float | None:
        """From the kill of the broker to the first claim that its successor gave."""
        with self._changed:
            return _first(killed_ns, [claim for claim in self.claims if claim.boot > boot])

    @property
    def doubled(self) -> int:
        """Jobs that completed more than once."""
        return sum(1 for count in self.completions.values() if count > 1)

    def close(self) -> None:
        """Stops following."""
        self._client.close(0.0)
        self._thread.join(5.0)


def _first(after_ns: int, claims: list[Claim]) -> float | None:
    found = [claim.at_ns for claim in claims if claim.at_ns > after_ns]
    return (min(found) - after_ns) / _NS_PER_MS if found else None
