"""What the board shows of this worker, and the memory limit that is watched on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from empd.clock import NS_PER_S
from empd.connectors.context import Context
from empd.lifecycle import Child
from empd.memory.board import Activity, Board
from empd.memory.layout import SPARES
from empd.wire.telemetry import Sample
from empd.worker.lanes import Lanes
from empd.worker.log import Log
from empd.worker.tally import Tally

GAP_NS_MIN = NS_PER_S // 20
"""Tiny jobs do not write the board one by one: it is at most this old."""

BASELINE_FACTOR = 1.25
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROCESSES_MAX = 1_000
_PIDS_BYTES = 8 * _PROCESSES_MAX


class Activities:
    """Writes the board at the heartbeat and soon after something changed. `on_heavy()` is called past the limit."""

    def __init__(self, child: Child, memory_bytes_max: int, on_heavy: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.board = Board.attach(child.board_fd)
        self._memory = Memory()
        self._leases: dict[str, int] = {}
        self._writer = self.board.writer(child.slot, Activity)
        self._memory_bytes_max = memory_bytes_max
        self._limit_bytes = 0
        self._on_heavy = on_heavy
        self._lanes: Lanes | None = None
        self._tallies: Sequence[Tally] = ()
        self._last_ns = 0
        self._later: asyncio.TimerHandle | None = None
        self._worked = False
        self.rss_bytes = 0

    def watch(self, lanes: Lanes, tallies: Sequence[Tally]) -> None:
        """Where the numbers come from."""
        self._lanes, self._tallies = lanes, tallies

    def measure_baseline(self, log: Log) -> None:
        """Call when everything is loaded: no limit below what an idle worker needs could ever hold."""
        if self._memory_bytes_max:
            baseline_bytes = int(self._memory.rss_bytes() * BASELINE_FACTOR)
            self._limit_bytes = max(self._memory_bytes_max, baseline_bytes)
            if self._limit_bytes != self._memory_bytes_max:
                limits = {"limit_bytes": self._memory_bytes_max, "used_bytes": self._limit_bytes}
                log("memory_limit_raised", "warning", reason="it was below what the idle worker needs", **limits)

    def note(self, now_ns: int) -> None:
        """A job began or ended; the board shows it within 50 ms, the first result at once: by that the supervisor
        tells a worker which a job has killed from one that is no good."""
        if now_ns - self._last_ns >= GAP_NS_MIN or (not self._worked and self._jobs_done()):
            self._write(now_ns)
        elif self._later is None:
            self._later = self._loop.call_later(GAP_NS_MIN / NS_PER_S, self._late)

    def moved(self, context: Context) -> None:
        """A job made progress."""
        context.moved_ns = time.monotonic_ns()
        self.note(context.moved_ns)

    def lease(self, service: str, generation: int) -> None:
        """Shows at once which generation of a service's server this worker uses; 0: none."""
        self._leases[service] = generation
        self._write(time.monotonic_ns())

    def heartbeat(self) -> None:
        """Writes now."""
        self._write(time.monotonic_ns())

    def samples(self) -> list[Sample]:
        """The worker's gauges."""
        running = self._lanes.busy if self._lanes else 0
        return [
            Sample("gauge", "empd_worker_memory_bytes", {}, self.rss_bytes),
            Sample("gauge", "empd_worker_jobs_running", {}, running),
        ]

    def close(self) -> None:
        """Unmaps the board. No more may be written."""
        if self._later is not None:
            self._later.cancel()
        self.board.close()
        self._memory.close()

    def _late(self) -> None:
        self._later = None
        self._write(time.monotonic_ns())

    def _jobs_done(self) -> int:
        return sum(tally.completed for tally in self._tallies)

    def _write(self, now_ns: int) -> None:
        self._last_ns = now_ns
        self.rss_bytes = self._memory.rss_bytes()
        jobs_done = self._jobs_done()
        self._worked = jobs_done > 0
        running = self._lanes.running if self._lanes else []
        # Of several jobs the board shows the one that has not moved for longest: it is the one that may hang.
        shown = min(running, key=_moved_ns, default=None)
        self._writer.write(
            Activity(
                heartbeat_mono_ns=now_ns,
                job_id=shown.job.id if shown else 0,
                epoch=shown.job.epoch if shown else 0,
                progress=shown.fraction if shown else 0.0,
                progress_mono_ns=_moved_ns(shown) if shown else 0,
                jobs_running=len(running),
                jobs_done=jobs_done,
                jobs_failed=sum(tally.failed for tally in self._tallies),
                rss_bytes=self.rss_bytes,
                spares=(*self._leases.values(), *(0,) * (SPARES - len(self._leases))),
            )
        )
        if self._limit_bytes and self.rss_bytes > self._limit_bytes:
            self._on_heavy()


def _moved_ns(context: Context) -> int:
    return context.moved_ns or context.started_ns


class Memory:
    """Resident memory of this process and those below it: what a callable in a process of its own takes counts for the
    worker that it works for.

    It is asked for twenty times a second under load; so the two files that always count are kept open.
    """

    def __init__(self) -> None:
        pid = os.getpid()
        self._own = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
        self._below = -1
        with contextlib.suppress(OSError):  # the kernel does not tell of children
            self._below = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY)

    def rss_bytes(self) -> int:
        """What is resident now."""
        pages = int(os.pread(self._own, 256, 0).split()[1])
        left = [*map(int, os.pread(self._below, _PIDS_BYTES, 0).split())] if self._below >= 0 else []
        for _ in range(_PROCESSES_MAX):
            if not left:
                break
            pid = left.pop()
            with contextlib.suppress(OSError):  # it has just ended
                pages += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
                left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split())
        return pages * _PAGE_BYTES

    def close(self) -> None:
        """Closes the files; closing twice is fine."""
        for descriptor in {self._own, self._below} - {-1}:
            os.close(descriptor)
        self._own = self._below = -1
