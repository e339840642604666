"""What the broker hears from and tells the supervisor: births and deaths of workers, and whom to kill."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from empd import lifecycle
from empd.broker.workers import WorkerDesk
from empd.clock import Instant, seconds_to_ns
from empd.job import State
from empd.lifecycle import Child, ChildKind, Control, Exit, Notice
from empd.memory.board import Board
from empd.queue import deadlines
from empd.queue.machine import Queue
from empd.queue.state import Job, Worker

EVIDENCE_BYTES_MAX = 16_384
_log = logging.getLogger("empd.broker")


class Neighbours:
    """The broker's end of its socketpair."""

    def __init__(self, child: Child, queue: Queue, workers: WorkerDesk, board: Board) -> None:
        self._child = child
        self._queue = queue
        self._workers = workers
        self._board = board
        self._slots: dict[int, int] = {}  # generation → slot
        self._killing: set[int] = set()
        self._progress_limits_ns = {
            job_type: seconds_to_ns(limit)
            for job_type in child.mapping.job_types()
            if (limit := child.mapping.run_limits(job_type).progress_timeout_s)
        }
        self.settled = False
        self.told_to_stop = False

    def read(self, now: Instant) -> bool:
        """Handles what the supervisor said; False when it is gone."""
        records = lifecycle.receive(self._child.control)
        if records is None:
            return False
        for record in records:
            if record.notice is Notice.UP and record.kind is ChildKind.WORKER:
                self._slots[record.generation] = record.slot
            elif record.notice is Notice.GONE and record.kind is ChildKind.WORKER:
                self._slots.pop(record.generation, None)
                self._killing.discard(record.generation)
                self._gone(record.generation, Exit(record.cause), record.status, now)
            elif record.notice is Notice.PICTURE_END:
                self._settle(now)
            elif record.notice in (Notice.STOP, Notice.DRAIN):
                self.told_to_stop = True
        return True

    def _settle(self, now: Instant) -> None:
        """Releases the claims of workers that no longer live. One of this supervisor's own died while there was no
        broker to hear it; one of an earlier supervisor's was lost with it. One forked after this broker is not in the
        picture and may be quicker than the record of its birth."""
        for worker in list(self._queue.state.workers.values()):
            same = worker.generation >> 32 == self._child.generation >> 32
            if worker.generation not in self._slots and not (same and worker.generation > self._child.generation):
                self._gone(worker.generation, Exit.CRASHED if same else Exit.HOST_LOST, None, now)
        self.settled = True

    def _gone(self, generation: int, how: Exit, status: int | None, now: Instant) -> None:
        self._workers.buried(generation)
        for key in [key for key in self._queue.state.workers if key[1] == generation]:
            worker = self._queue.state.workers[key]
            evidence = f"{_ending(worker, status)}\n{self._evidence(generation)}" if worker.held else ""
            if worker.held:
                _log.warning("worker %s is gone (%s) with %d jobs", worker.name, how.name.lower(), len(worker.held))
            self._queue.gone(key, how, evidence, now)
            self._workers.forget(key)

    def _evidence(self, generation: int) -> str:
        path: Path = lifecycle.evidence_path(self._child.settings.runtime_dir, generation)
        try:
            with path.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(file.tell() - EVIDENCE_BYTES_MAX, 0))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def kill(self, worker: Worker, job: Job, now: Instant) -> None:
        """Asks the supervisor to climb the ladder: the worker did not stop a job in its grace time."""
        slot = self._slots.get(worker.generation)
        if worker.generation in self._killing:
            return
        if slot is None:
            deadlines.ask_again(self._queue.state, job, now.mono_ns)
            return
        _log.warning("worker %s does not stop job %x; asking for its end", worker.name, job.id)
        record = Control(
            Notice.KILL, ChildKind.WORKER, slot, worker.generation, Exit.HUNG, value=job.id & (1 << 63) - 1
        )
        if lifecycle.send(self._child.control, record):
            self._killing.add(worker.generation)
        else:
            deadlines.ask_again(self._queue.state, job, now.mono_ns)

    def watch_progress(self, now: Instant) -> None:
        """Stops jobs that have not moved for their service's `progress_timeout_s`, as the board shows it."""
        if not self._progress_limits_ns:
            return
        for worker in self._queue.state.workers.values():
            slot = self._slots.get(worker.generation)
            if slot is None or not worker.held:
                continue
            activity = self._board.read(slot).activity
            moved_ns = activity.progress_mono_ns if activity is not None else 0
            for job in list(worker.held.values()):
                limit_ns = self._progress_limits_ns.get(job.options.spec.service)
                if not limit_ns or job.state is not State.ASSIGNED:
                    continue
                # By steady time where the run has a limit: the wall clock may have been set since.
                timeout_ns = job.options.timeout_ns
                started_ns = job.limit_ns - timeout_ns if job.limit_ns else now.mono_ns - now.wall_ns + job.started_ns
                since_ns = max(started_ns, moved_ns)
                if now.mono_ns - since_ns > limit_ns:
                    self._queue.stalled(job, now)


def _ending(worker: Worker, status: int | None) -> str:
    """The first line of the evidence: who ended, and by what."""
    who = f"worker {worker.name} (pid {worker.pid}, generation {worker.generation})"
    if status is None:
        return f"{who} was gone when the broker came back"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"{who} was ended by signal {number} ({signal.strsignal(number)})"
    return f"{who} exited with status {os.waitstatus_to_exitcode(status)}"
