"""What facts about attempts do to the state: jobs are held, end, wait again, are stopped, get another chance."""

from __future__ import annotations

import heapq

from empd.job import Cause, Outcome, State
from empd.payload import BlobRef, Carried
from empd.queue import rows
from empd.queue.options import OptionsTable
from empd.queue.room import WaitingRoom
from empd.queue.rows import Fact
from empd.queue.state import Job, QueueState, Worker, bury, count_open, extra_of, steady_ns, worker_of
from empd.result import FinishedJob

# To look up a member of an enum takes as long as five assignments, and here it is done for every job.
_WAITING, _ASSIGNED, _DEAD = State.WAITING, State.ASSIGNED, State.DEAD
_DEAD_LETTERED = Outcome.DEAD


class Attempts:
    """The part of `evolve` that is about attempts."""

    def __init__(self, state: QueueState, room: WaitingRoom, options: OptionsTable) -> None:
        self.state = state
        self.room = room
        self.options = options

    def assigned(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Assigned = fact.body
        worker = worker_of(self.state, body.worker, body.generation)
        jobs = self.state.jobs
        found = [jobs[job_id] for job_id in body.ids if job_id in jobs]
        if len(found) == len(body.ids):
            self.assign(worker, found, body.first_epoch, at_ns)
            for group in {job.options.group for job in found}:
                group.head()
            return
        for offset, job_id in enumerate(body.ids):
            if job_id in jobs:
                self.assign(worker, [jobs[job_id]], body.first_epoch + offset, at_ns)
        self.state.next_epoch = max(self.state.next_epoch, body.first_epoch + len(body.ids))

    def assign(self, worker: Worker, jobs: list[Job], first_epoch: int, at_ns: int) -> None:
        """The jobs are held by the worker, under consecutive epochs."""
        epoch = first_epoch
        held = worker.held
        mono_ns = steady_ns(self.state, at_ns)
        nearest = worker.limit_ns
        for job in jobs:
            options = job.options
            if job.state is _WAITING:
                options.group.waiting -= 1
            job.state = _ASSIGNED
            job.epoch = epoch
            epoch += 1
            job.holder = worker
            job.started_ns = at_ns
            job.attempts += 1
            held[job.id] = job
            if options.timeout_ns:
                limit_ns = job.limit_ns = mono_ns + options.timeout_ns
                if limit_ns < nearest or not nearest:
                    nearest = limit_ns
        worker.limit_ns = nearest
        jobs[0].options.group.head()  # drops what was assigned from the head of the line
        self.state.next_epoch = max(self.state.next_epoch, epoch)

    def _release(self, job: Job) -> None:
        worker = job.holder
        if worker is not None:
            worker.held.pop(job.id, None)
            job.holder = None
            if not worker.held and not worker.connected:
                self.state.workers.pop(worker.key, None)
        job.epoch = 0
        job.limit_ns = 0

    def results(self, seq: int, at_ns: int, fact: Fact) -> None:
        state = self.state
        jobs = state.jobs
        take = jobs.pop
        ended: list[int] = []
        known: list[Job] = []
        for group in fact.body.groups:
            for finished in group.jobs:
                job_id = finished.id
                if finished.outcome == _DEAD_LETTERED:
                    if job_id in jobs:
                        self._bury(jobs[job_id], finished, at_ns)
                    continue
                ended.append(job_id)
                job = take(job_id, None)
                if job is not None:
                    known.append(job)
        if keys := self.end(known, at_ns):
            heapq.heappush(state.ended_keys, (at_ns, keys))
        if ended:
            count_open(self.state, fact.body.session, -len(known))
            session = state.sessions.get(fact.body.session)
            if session is not None:
                session.seen_mono_ns = steady_ns(self.state, at_ns)
            state.recent.update(dict.fromkeys(ended, seq))
            state.recent_rows.append((seq, ended))

    def end(self, jobs: list[Job], at_ns: int) -> list[str]:
        """The jobs are no more. Returns the idempotency keys that are remembered from now on for their retention."""
        state = self.state
        keys: list[str] = []
        size = 0
        for job in jobs:
            if job.state is _WAITING:
                job.options.group.waiting -= 1
            elif job.state is _DEAD:
                state.dead -= 1
            worker = job.holder
            if worker is not None:
                worker.held.pop(job.id, None)
                job.holder = None
                if not worker.connected and not worker.held:
                    state.workers.pop(worker.key, None)
            job.state = _DEAD  # a stale entry in the waiting room no longer counts
            payload = job.payload
            if type(payload) is bytes:
                size += len(payload)
            else:
                self._unrefer(payload)
            job.payload = b""
            extra = job.extra
            if extra is not None and extra.key and extra.key in state.keys:
                state.keys[extra.key].ended_ns = at_ns
                keys.append(extra.key)
        state.payload_bytes -= size
        return keys

    def _unrefer(self, payload: Carried) -> None:
        assert isinstance(payload, BlobRef)
        left = self.state.blobs.pop(payload.id, 1) - 1
        if left:
            self.state.blobs[payload.id] = left
        else:
            self.state.released.append(payload)

    def _bury(self, job: Job, finished: FinishedJob, at_ns: int) -> None:
        if job.state is State.WAITING:
            job.options.group.waiting -= 1
        self._release(job)
        extra_of(job).error = finished.error
        bury(self.state, job, at_ns)

    def requeued(self, seq: int, at_ns: int, fact: Fact) -> None:
        state = self.state
        for item in fact.body.jobs:
            job = state.jobs.get(item.id)
            if job is None or job.epoch != item.epoch:
                continue
            self._release(job)
            extra = extra_of(job)
            extra.error = item.error or extra.error
            extra.stop = ""
            extra.charges = charged(extra.charges, Cause(item.cause))
            if item.unbegun:
                self._uncount(job)
            if item.delay_ns:
                job.state = State.DELAYED
                extra.ready_ns = steady_ns(state, at_ns) + item.delay_ns
                heapq.heappush(state.due_mono, (extra.ready_ns, job.id, job.attempts))
            else:
                job.state = State.WAITING
                self.room.add(job)

    def _uncount(self, job: Job) -> None:
        job.attempts -= 1
        if not job.attempts and job.options.queue_timeout_ns:
            # It waits for its begin as before; the limit may have passed, and been passed over, meanwhile.
            when_ns = job.submitted_mono_ns + job.options.queue_timeout_ns
            heapq.heappush(self.state.deadlines, (when_ns, job.id, "queue"))

    def stopping(self, seq: int, at_ns: int, fact: Fact) -> None:
        grace_ns = steady_ns(self.state, at_ns) + self.options.policy.stop_grace_ns
        for item in fact.body.jobs:
            job = self.state.jobs.get(item.id)
            if job is not None and job.epoch == item.epoch:
                job.state = State.CANCELLING
                job.limit_ns = 0
                extra_of(job).stop = item.failure
                heapq.heappush(self.state.graces, (grace_ns, job.id, job.epoch))

    def retried(self, seq: int, at_ns: int, fact: Fact) -> None:
        for job_id in fact.body.ids:
            job = self.state.jobs.get(job_id)
            if job is not None and job.state is State.DEAD:
                self.state.dead -= 1
                extra = extra_of(job)
                extra.charges, extra.error, extra.stop, extra.died_ns = (0, 0, 0), None, "", 0
                job.state = State.WAITING
                self.room.add(job)

    def checkpoint(self, seq: int, at_ns: int, fact: Fact) -> None:
        job = self.state.jobs.get(fact.body.id)
        if job is not None:
            extra = extra_of(job)
            extra.checkpoint = fact.body.data
            extra.doubt = fact.body.doubt or extra.doubt


def charged(charges: tuple[int, int, int], cause: Cause) -> tuple[int, int, int]:
    """The charges after one more attempt ended by `cause`."""
    faults, crashes, losses = charges
    if cause is Cause.JOB_FAULT:
        return faults + 1, crashes, losses
    if cause is Cause.WORKER_CRASHED:
        return faults, crashes + 1, losses
    if cause is Cause.HOST_LOST:
        return faults, crashes, losses + 1
    return charges
