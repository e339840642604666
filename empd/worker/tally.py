"""A worker's metrics: plain numbers, counted where the work is done, gathered into one snapshot every few seconds.

A worker sees attempts; `empd_jobs_total` is what the journal says: each job once, however it ended.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from empd.wire.telemetry import Sample

BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
_BOUNDS_NS = tuple(int(bound * 1e9) for bound in BOUNDS_S)


class Tally:
    """Outcomes and run times of one service's jobs."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.completed = 0
        self.other: dict[tuple[str, str], int] = {}
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_ns = 0

    def ran(self, elapsed_ns: int) -> None:
        """A job ran that long, however it ended."""
        self._counts[bisect_left(_BOUNDS_NS, elapsed_ns)] += 1
        self._sum_ns += elapsed_ns

    def ended(self, outcome: str, cause: str) -> None:
        """A job ended otherwise than completed."""
        self.other[outcome, cause] = self.other.get((outcome, cause), 0) + 1

    @property
    def jobs(self) -> int:
        """Jobs that ended here."""
        return self.completed + self.failed

    @property
    def failed(self) -> int:
        """Jobs that ended otherwise than completed."""
        return sum(self.other.values())

    def samples(self) -> list[Sample]:
        """The series of this service."""
        labels = {"service": self.service}
        ends = {("completed", ""): self.completed, **self.other}
        found = [
            Sample("counter", "empd_attempts_total", {**labels, "outcome": outcome, "cause": cause}, count)
            for (outcome, cause), count in ends.items()
        ]
        buckets = list(zip((*BOUNDS_S, float("inf")), accumulate(self._counts), strict=True))
        found.append(Sample("histogram", "empd_attempt_run_seconds", labels, self._sum_ns / 1e9, buckets))
        return found
