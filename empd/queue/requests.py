"""Decides on what people ask of jobs: cancel, retry, state, list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from empd.errors import FailureClass
from empd.job import JobFilter, Outcome, State
from empd.queue.claims import waiting_reason
from empd.queue.outcomes import Ends
from empd.queue.room import WaitingRoom
from empd.queue.rows import Fact, Forgotten, Ids, Kind, Stopping, StoppingJob
from empd.queue.state import Job, QueueState, doubt_of
from empd.result import JobError, JobStatus

LIST_MAX = 1000
LIST_BYTES = 512 * 1024
_STATUS_BYTES = 256  # of the names of fields and of numbers


class Cancelled(NamedTuple):
    """What became of a cancel: facts, ids now cancelled, ids whose work is being stopped, ids not known here."""

    facts: list[Fact]
    cancelled: list[int]
    cancelling: list[int]
    unknown: list[int]


def leave(state: QueueState, session: int) -> list[Fact]:
    """A client goes and nobody will come back for its session: it is forgotten now, unless jobs of it are open."""
    if session not in state.sessions or session in state.open_jobs:
        return []
    return [Fact(Kind.FORGOTTEN, Forgotten(sessions=[session]))]


def cancel(state: QueueState, ids: Iterable[int], at_ns: int) -> Cancelled:
    """Waiting and dead-lettered jobs end at once; a held one when its work has stopped. Asking twice is fine."""
    ends = Ends("", at_ns)
    outcome = Cancelled([], [], [], [])
    stopping: list[StoppingJob] = []
    for job_id in dict.fromkeys(ids):
        job = state.jobs.get(job_id)
        if job is None:
            outcome.unknown.append(job_id)
        elif job.state in (State.ASSIGNED, State.CANCELLING):
            outcome.cancelling.append(job_id)
            if job.extra is None or job.extra.stop != FailureClass.CANCELLED:
                stopping.append(StoppingJob(job_id, job.epoch, FailureClass.CANCELLED))
        else:
            outcome.cancelled.append(job_id)
            ends.add(job, Outcome.CANCELLED, JobError(FailureClass.CANCELLED, "cancelled before it ran"))
    outcome.facts.extend(ends.facts())
    if stopping:
        outcome.facts.append(Fact(Kind.STOPPING, Stopping(stopping)))
    return outcome


def retry(state: QueueState, ids: Iterable[int]) -> tuple[list[Fact], list[int]]:
    """Dead-lettered jobs wait again with fresh budgets; returns the ids that did."""
    dead = [i for i in dict.fromkeys(ids) if (job := state.jobs.get(i)) is not None and job.state is State.DEAD]
    return ([Fact(Kind.RETRIED, Ids(dead))] if dead else []), dead


class Place(NamedTuple):
    """Where a job stands among all: the last row that has to stay for it, then its id. Jobs are kept in this order, and
    one only ever moves to the end (when it is carried), so that whoever goes on behind a place leaves none out,
    whatever became of the job that stood there."""

    cursor: int
    after: int


def place(job: Job) -> Place:
    """The place of a job."""
    return Place(job.touched, job.id)


def select(state: QueueState, wanted: JobFilter) -> Iterator[Job]:
    """Jobs that fit a filter, behind its place. Raises ValueError on an unknown state name."""
    states = _states(wanted.states)
    cursor, after = wanted.cursor, wanted.after
    for job in state.jobs.values():
        if job.touched < cursor or (job.touched == cursor and job.id <= after):
            continue
        if states is not None and job.state not in states:
            continue
        spec = job.options.spec
        if wanted.service is not None and spec.service != wanted.service:
            continue
        if wanted.customer_id is not None and spec.customer_id != wanted.customer_id:
            continue
        if wanted.workflow_id is not None and spec.workflow_id != wanted.workflow_id:
            continue
        if wanted.worker is not None and (job.holder is None or job.holder.name != wanted.worker):
            continue
        if wanted.labels and not (wanted.labels.items() <= (spec.labels or {}).items()):
            continue
        yield job


def _states(names: list[str] | None) -> set[State] | None:
    if names is None:
        return None
    known = {state.name.lower(): state for state in State}
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a state of an unfinished job; accepted: {', '.join(known)}")
    return {known[name] for name in names}


def listing(state: QueueState, wanted: JobFilter) -> tuple[list[JobStatus], Place | None]:
    """One page of the jobs that fit, and the place it ends at (None: this was the last). No job that stays is left out
    by the next page; one that was carried in between is named twice."""
    limit = max(1, min(wanted.limit, LIST_MAX))
    page: list[JobStatus] = []
    last: Place | None = None
    size = 0
    for job in select(state, wanted):
        if len(page) == limit or (page and size >= LIST_BYTES):
            return page, last
        last = place(job)
        page.append(status(state, job))
        size += status_bytes(page[-1])
    return page, None


def status(state: QueueState, job: Job) -> JobStatus:
    """What is known of an unfinished job, for a reader."""
    spec = job.options.spec
    holder = job.holder
    waits = job.state in (State.WAITING, State.DELAYED)
    return JobStatus(
        id=job.id,
        state=job.state.name.lower(),
        service=spec.service,
        priority=spec.priority,
        submitted_ns=job.submitted_ns,
        started_ns=job.started_ns,
        attempts=job.attempts,
        worker=holder.name if holder is not None else "",
        epoch=job.epoch,
        customer_id=spec.customer_id,
        workflow_id=spec.workflow_id,
        labels=spec.labels,
        reason=waiting_reason(state, job) if waits else (job.extra.stop if job.extra else ""),
        error=job.extra.error if job.extra else None,
        doubt=doubt_of(job),
    )


def status_bytes(said: JobStatus) -> int:
    """About how large it is in a frame; rather more than less."""
    size = _STATUS_BYTES + 4 * (len(said.reason) + len(said.service) + len(said.worker) + len(said.doubt))
    if said.labels:
        size += sum(4 * (len(name) + len(value)) + 10 for name, value in said.labels.items())
    size += 4 * (len(said.customer_id or "") + len(said.workflow_id or ""))
    if said.error is not None:
        size += 4 * len(said.error.message) + len(said.error.evidence)
    return size


def depths(room: WaitingRoom) -> dict[str, tuple[int, int]]:
    """Waiting jobs by service: how many, and when (wall time) the oldest was submitted."""
    found: dict[str, tuple[int, int]] = {}
    for group in room.groups():
        if group.waiting:
            waiting, oldest_ns = found.get(group.service, (0, group.oldest_ns()))
            found[group.service] = waiting + group.waiting, min(oldest_ns, group.oldest_ns())
    return found
