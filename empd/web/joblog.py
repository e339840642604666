"""The last lines and the last progress of jobs, in memory: bounded for each job, in all, and in number of jobs."""

from __future__ import annotations

from collections import OrderedDict, deque

from empd.wire.telemetry import JobLog, JobProgress

JOBS_MAX = 2_000
TOTAL_BYTES_MAX = 64 << 20
LINE_OVERHEAD_BYTES = 64


class _Tail:
    """The newest lines of one job within a number of bytes."""

    __slots__ = ("dropped", "lines", "size_bytes")

    def __init__(self) -> None:
        self.lines: deque[JobLog] = deque()
        self.size_bytes = 0
        self.dropped = 0

    def add(self, line: JobLog, bytes_max: int) -> int:
        """Returns by how much the tail grew."""
        before = self.size_bytes
        self.lines.append(line)
        self.size_bytes += len(line.text) + LINE_OVERHEAD_BYTES
        while self.size_bytes > bytes_max and self.lines:
            self.size_bytes -= len(self.lines.popleft().text) + LINE_OVERHEAD_BYTES
            self.dropped += 1
        return self.size_bytes - before


class JobLogs:
    """Log tails and progress; the jobs that said nothing for longest are forgotten first."""

    def __init__(self, bytes_max: int, jobs_max: int = JOBS_MAX, total_bytes_max: int = TOTAL_BYTES_MAX) -> None:
        self._bytes_max = min(bytes_max, total_bytes_max)
        self._total_bytes_max = total_bytes_max
        self.size_bytes = 0
        self._jobs_max = jobs_max
        self._tails: OrderedDict[int, _Tail] = OrderedDict()
        self._progress: OrderedDict[int, JobProgress] = OrderedDict()

    def add(self, line: JobLog) -> None:
        """Keeps a line."""
        tail = self._tails.get(line.id)
        if tail is None:
            tail = self._tails[line.id] = _Tail()
        self._tails.move_to_end(line.id)
        self.size_bytes += tail.add(line, self._bytes_max)
        while len(self._tails) > self._jobs_max or self.size_bytes > self._total_bytes_max:
            self.size_bytes -= self._tails.popitem(last=False)[1].size_bytes

    def move(self, progress: JobProgress) -> None:
        """Keeps how far a job is; progress of an earlier attempt is passed over."""
        known = self._progress.get(progress.id)
        if known is not None and known.epoch > progress.epoch:
            return
        self._progress[progress.id] = progress
        self._progress.move_to_end(progress.id)
        if len(self._progress) > self._jobs_max:
            self._progress.popitem(last=False)

    def tail(self, job_id: int) -> tuple[list[JobLog], int]:
        """(lines, number of older ones dropped) of a job."""
        tail = self._tails.get(job_id)
        return (list(tail.lines), tail.dropped) if tail else ([], 0)

    def progress(self, job_id: int) -> JobProgress | None:
        """How far a job is, where it said so."""
        return self._progress.get(job_id)

    def __len__(self) -> int:
        return len(self._tails)
