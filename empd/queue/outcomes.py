"""Decides what follows from what workers say of their attempts, and from their deaths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from empd.clock import NS_PER_S
from empd.errors import FailureClass
from empd.job import Cause, Outcome, State
from empd.lifecycle import Exit
from empd.queue.attempts import charged
from empd.queue.policy import Policy, backoff_delay_ns
from empd.queue.rows import Fact, Kind, Requeued, RequeuedJob
from empd.queue.state import Job, Options, Worker, doubt_of
from empd.result import DoneJob, FailedJob, FinishedGroup, FinishedJob, JobError, Results

_EVIDENCE_CHARS_MAX = 16_384
_RESULTS_BYTES = 900 * 1024
_FINISHED_BYTES = 64
_REQUEUED_MAX = 32
_WAIT_S_MAX = 7 * 86_400.0


class DoneFrame(Protocol):
    """A worker's Done frame, as far as it matters here."""

    done: list[DoneJob]
    failed: list[FailedJob]
    cancelled: list[tuple[int, int]]


class Ends:
    """Collects ended jobs into as few `Results` as sessions, and ended attempts of others in `requeued`."""

    def __init__(self, worker: str, at_ns: int) -> None:
        self._worker = worker
        self._at_ns = at_ns
        self.requeued: list[RequeuedJob] = []
        self._groups: dict[int, dict[int, tuple[Options, list[FinishedJob]]]] = {}

    def bucket(self, session: int, options: Options) -> list[FinishedJob]:
        """The list that ended jobs of this session with these options go to."""
        groups = self._groups.setdefault(session, {})
        return groups.setdefault(id(options), (options, []))[1]

    def add(self, job: Job, outcome: Outcome, error: JobError | None, usage: dict[str, float] | None = None) -> None:
        """A job that ends without a result."""
        self.bucket(job.id >> 32, job.options).append(
            FinishedJob(
                job.id, outcome, None, job.submitted_ns, job.started_ns, job.attempts, error, usage, doubt_of(job)
            )
        )

    def facts(self) -> list[Fact]:
        """RESULTS facts for each session, each no larger than a frame; REQUEUED for all."""
        facts = [
            Fact(Kind.RESULTS, Results(session, self._worker, self._at_ns, frame), session)
            for session, groups in self._groups.items()
            for frame in _frames(groups.values())
        ]
        facts += [
            Fact(Kind.REQUEUED, Requeued(self.requeued[first : first + _REQUEUED_MAX]))
            for first in range(0, len(self.requeued), _REQUEUED_MAX)
        ]
        return facts


def _frames(groups: Iterable[tuple[Options, list[FinishedJob]]]) -> Iterator[list[FinishedGroup]]:
    """The groups in portions, each of which fits into one frame."""
    frame: list[FinishedGroup] = []
    left = _RESULTS_BYTES
    for options, jobs in groups:
        begin = 0
        left -= len(options.raw)
        for index, job in enumerate(jobs):
            result, error = job.result, job.error
            size = _FINISHED_BYTES + (len(result) if type(result) is bytes else 0) + 4 * len(job.doubt)
            if error is not None:
                size += len(error.failure) + 4 * (len(error.message) + len(error.evidence))
            if job.usage:
                size += sum(4 * len(name) + 16 for name in job.usage)
            left -= size
            if left < 0 and (frame or index > begin):
                if index > begin:
                    frame.append(FinishedGroup(options.raw, jobs[begin:index]))
                yield frame
                frame, begin = [], index
                left = _RESULTS_BYTES - len(options.raw) - size
        frame.append(FinishedGroup(options.raw, jobs[begin:] if begin else jobs))
    if frame:
        yield frame


class Verdict(NamedTuple):
    """What follows for jobs whose attempts ended, and how many of the claims were stale."""

    facts: list[Fact]
    stale: int


def done(policy: Policy, worker: Worker, frame: DoneFrame, at_ns: int) -> Verdict:
    """Decides on a worker's Done frame. A stale epoch, or a job said twice, writes nothing and is counted."""
    ends = Ends(worker.name, at_ns)
    stale = _completed(worker, frame.done, ends)
    seen: set[int] = {item.id for item in frame.done} if frame.failed or frame.cancelled else set()
    for failed in frame.failed:
        job = _held(worker, failed.id, failed.epoch, seen)
        if job is None:
            stale += 1
        else:
            _failed(policy, job, failed, ends)
    for job_id, epoch in frame.cancelled:
        job = _held(worker, job_id, epoch, seen)
        if job is None:
            stale += 1
        else:
            _stopped(policy, job, ends)
    return Verdict(ends.facts(), stale)


def _completed(worker: Worker, done_jobs: list[DoneJob], ends: Ends) -> int:
    held = worker.held
    stale = 0
    last_options: Options | None = None
    last_session = -1
    bucket: list[FinishedJob] = []
    unique = len({item.id for item in done_jobs}) == len(done_jobs)
    seen: set[int] = set()
    for item in done_jobs:
        job_id = item.id
        job = held.get(job_id)
        if job is None or job.epoch != item.epoch or (not unique and job_id in seen):
            stale += 1
            continue
        if not unique:
            seen.add(job_id)
        options = job.options
        if options is not last_options or job_id >> 32 != last_session:
            last_options, last_session = options, job_id >> 32
            bucket = ends.bucket(last_session, options)
        doubt = "" if job.extra is None else job.extra.doubt
        bucket.append(
            FinishedJob(job_id, 0, item.result, job.submitted_ns, job.started_ns, job.attempts, None, item.usage, doubt)
        )
    return stale


def _held(worker: Worker, job_id: int, epoch: int, seen: set[int]) -> Job | None:
    job = worker.held.get(job_id)
    if job is None or job.epoch != epoch or job_id in seen:
        return None
    seen.add(job_id)
    return job


def _failed(policy: Policy, job: Job, failed: FailedJob, ends: Ends) -> None:
    stop = job.extra.stop if job.extra else ""
    if stop in (FailureClass.CANCELLED, FailureClass.EXPIRED):
        _stopped(policy, job, ends)
        return
    try:
        cause = Cause(failed.cause)
    except ValueError:
        cause = Cause.JOB_FAULT
    error = JobError(failed.error.failure, failed.error.message, failed.error.evidence[-_EVIDENCE_CHARS_MAX:])
    if not failed.retry:
        ends.add(job, Outcome.FAILED, error, failed.usage)
        return
    delay_ns = int(_bounded_s(failed.retry_after_s) * NS_PER_S)
    _again(policy, job, cause, error, ends, delay_ns)


def _bounded_s(seconds: float | None) -> float:
    """A wait that an upstream service asked for; connectors hand on what they read, infinity and less than nothing
    as well."""
    if seconds is None or math.isnan(seconds):
        return 0.0
    return min(max(seconds, 0.0), _WAIT_S_MAX)


def _stopped(policy: Policy, job: Job, ends: Ends) -> None:
    """The work was told to stop and has stopped."""
    stop = job.extra.stop if job.extra else ""
    if stop == FailureClass.EXPIRED:
        ends.add(job, Outcome.EXPIRED, JobError(FailureClass.EXPIRED, "the total time-out passed while it ran"))
    elif stop == FailureClass.TIMEOUT:
        _again(policy, job, Cause.JOB_FAULT, _timeout_error(job), ends)
    else:
        ends.add(job, Outcome.CANCELLED, JobError(FailureClass.CANCELLED, "cancelled while it ran"))


def _timeout_error(job: Job) -> JobError:
    return JobError(FailureClass.TIMEOUT, f"the run passed its limit of {job.options.timeout_ns / NS_PER_S:g} s")


def _again(policy: Policy, job: Job, cause: Cause, error: JobError | None, ends: Ends, delay_ns: int = 0) -> None:
    """Another attempt, if the budget of the cause has one left; else the end that the cause asks for."""
    faults, crashes, losses = charged(job.extra.charges if job.extra else (0, 0, 0), cause)
    if cause is Cause.JOB_FAULT and faults > job.options.retries:
        ends.add(job, Outcome.FAILED, error)
        return
    if (cause is Cause.WORKER_CRASHED and crashes >= policy.max_crashes) or (
        cause is Cause.HOST_LOST and losses >= policy.max_host_losses
    ):
        ends.add(job, Outcome.DEAD, error)
        return
    if cause is Cause.JOB_FAULT:
        delay_ns = max(delay_ns, backoff_delay_ns(policy, faults, job.id))
    elif cause is Cause.UPSTREAM:
        delay_ns = max(delay_ns, policy.backoff_ns)
    ends.requeued.append(RequeuedJob(job.id, job.epoch, cause, delay_ns, error))


_CAUSES = {
    Exit.CLEAN: (Cause.DRAIN, FailureClass.WORKER_CRASHED),
    Exit.DRAINED: (Cause.DRAIN, FailureClass.WORKER_CRASHED),
    Exit.CRASHED: (Cause.WORKER_CRASHED, FailureClass.WORKER_CRASHED),
    Exit.OUT_OF_MEMORY: (Cause.WORKER_CRASHED, FailureClass.OUT_OF_MEMORY),
    Exit.HUNG: (Cause.NEIGHBOUR, FailureClass.WORKER_HUNG),
    Exit.GPU_LOST: (Cause.GPU_FAULT, FailureClass.GPU_LOST),
    Exit.HOST_LOST: (Cause.HOST_LOST, FailureClass.HOST_LOST),
}


def gone(policy: Policy, worker: Worker, how: Exit, evidence: str, at_ns: int) -> list[Fact]:
    """Decides on the jobs of a worker that is dead with its whole process tree.

    A job that was being stopped has stopped. In a worker that was killed for one hung job, that job is charged with
    the crash and its neighbours with nothing.
    """
    ends = Ends(worker.name, at_ns)
    cause, failure = _CAUSES[how]
    hung = {job.id for job in worker.held.values() if job.state is State.CANCELLING}
    for job in list(worker.held.values()):
        stop = job.extra.stop if job.extra else ""
        if stop in (FailureClass.CANCELLED, FailureClass.EXPIRED):
            _stopped(policy, job, ends)
            continue
        job_cause = cause
        message = f"worker {worker.name} {_WORDS[how]} while it held the job"
        if how is Exit.HUNG and (job.id in hung or not hung):
            job_cause, message = Cause.WORKER_CRASHED, f"worker {worker.name} hung and was killed; {_limit_text(job)}"
        error = JobError(failure, message, evidence[-_EVIDENCE_CHARS_MAX:])
        _again(policy, job, job_cause, error, ends)
    return ends.facts()


_WORDS = {
    Exit.CLEAN: "stopped",
    Exit.DRAINED: "was replaced",
    Exit.CRASHED: "died",
    Exit.OUT_OF_MEMORY: "was killed at its memory limit",
    Exit.HUNG: "was killed for another job that hung",
    Exit.GPU_LOST: "lost its GPU",
    Exit.HOST_LOST: "was lost with its host or supervisor",
}


def _limit_text(job: Job) -> str:
    return f"the job's run limit is {job.options.timeout_ns / NS_PER_S:g} s"


def given_back(policy: Policy, worker: Worker, jobs: list[Job], at_ns: int, *, unbegun: bool = False) -> list[Fact]:
    """Decides on jobs that the worker turned out not to hold (any more): uncharged, they wait again.

    `unbegun`: it never got them.
    """
    ends = Ends(worker.name, at_ns)
    for job in jobs:
        if job.extra is not None and job.extra.stop in (FailureClass.CANCELLED, FailureClass.EXPIRED):
            _stopped(policy, job, ends)
        else:
            ends.requeued.append(RequeuedJob(job.id, job.epoch, Cause.DRAIN, unbegun=unbegun))
    return ends.facts()
