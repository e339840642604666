"""Decides what time brings: jobs that become due, limits that pass, retention. Nothing here reads a clock."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import NamedTuple

from empd.clock import NS_PER_MS, NS_PER_S, Instant
from empd.errors import FailureClass
from empd.job import Outcome, State
from empd.queue.options import REASON_CHARS_MAX, unmatchable
from empd.queue.outcomes import Ends
from empd.queue.policy import Policy
from empd.queue.room import WaitingRoom
from empd.queue.rows import Fact, Forgotten, Kind, Stopping, StoppingJob
from empd.queue.state import Job, QueueState, Worker
from empd.result import JobError

_HELD = (State.ASSIGNED, State.CANCELLING)
_FORGET_MAX = 10_000
_HEAP_SLACK = 1_000


class Passed(NamedTuple):
    """What time brought: facts, and the workers that did not stop a job in time, each with that job."""

    facts: list[Fact]
    stuck: list[tuple[Worker, Job]]


def passed(state: QueueState, now: Instant) -> Passed:
    """Limits that have passed by now."""
    ends = Ends("", now.wall_ns)
    stopping: dict[int, StoppingJob] = {}
    ended: set[int] = set()
    _drop_ended(state)
    heap = state.deadlines
    while heap and heap[0][0] <= now.mono_ns:
        _, job_id, kind = heapq.heappop(heap)
        job = state.jobs.get(job_id)
        if job is None or job_id in ended or job.state is State.DEAD or (kind == "queue" and job.attempts):
            continue
        if job.state in _HELD:
            # One that is being stopped for its run limit would run again: this end goes before that.
            if job.extra is None or job.extra.stop in ("", FailureClass.TIMEOUT):
                stopping[job_id] = StoppingJob(job_id, job.epoch, FailureClass.EXPIRED)
        else:
            ended.add(job_id)
            ends.add(job, Outcome.EXPIRED, JobError(FailureClass.EXPIRED, f"the {kind} time-out passed"))
    for worker in state.workers.values():
        if worker.limit_ns and worker.limit_ns <= now.mono_ns:
            for over in _over_limit(worker, now.mono_ns):
                stopping.setdefault(over.id, over)
    facts = ends.facts()
    if stopping:
        facts.append(Fact(Kind.STOPPING, Stopping(list(stopping.values()))))
    return Passed(facts, _stuck(state, now.mono_ns))


def _drop_ended(state: QueueState) -> None:
    """Limits of ended jobs go once they are the greater part, so that far ones do not pile up."""
    jobs = state.jobs
    if len(state.deadlines) > _HEAP_SLACK + 4 * len(jobs):
        state.deadlines = [entry for entry in state.deadlines if entry[1] in jobs]
        heapq.heapify(state.deadlines)
    if len(state.due_wall) > _HEAP_SLACK + 2 * len(jobs):
        state.due_wall = [entry for entry in state.due_wall if entry[1] in jobs]
        heapq.heapify(state.due_wall)
    if len(state.due_mono) > _HEAP_SLACK + 2 * len(jobs):
        state.due_mono = [entry for entry in state.due_mono if entry[1] in jobs]
        heapq.heapify(state.due_mono)


def _over_limit(worker: Worker, mono_ns: int) -> list[StoppingJob]:
    """Jobs past their run limit; the worker's own limit becomes that of the next one."""
    over: list[StoppingJob] = []
    nearest = 0
    for job in worker.held.values():
        if not job.limit_ns:
            continue
        if job.limit_ns <= mono_ns:
            over.append(StoppingJob(job.id, job.epoch, FailureClass.TIMEOUT))
        elif not nearest or job.limit_ns < nearest:
            nearest = job.limit_ns
    worker.limit_ns = nearest
    return over


def stalled(job: Job) -> Fact:
    """The job has not moved for its service's progress limit: its holder is told to stop it."""
    return Fact(Kind.STOPPING, Stopping([StoppingJob(job.id, job.epoch, FailureClass.TIMEOUT)]))


def _stuck(state: QueueState, mono_ns: int) -> list[tuple[Worker, Job]]:
    stuck: list[tuple[Worker, Job]] = []
    heap = state.graces
    while heap and heap[0][0] <= mono_ns:
        _, job_id, epoch = heapq.heappop(heap)
        job = state.jobs.get(job_id)
        if job is not None and job.epoch == epoch and job.state is State.CANCELLING and job.holder is not None:
            stuck.append((job.holder, job))
    return stuck


def ask_again(state: QueueState, job: Job, mono_ns: int) -> None:
    """The holder of a job that does not stop could not be ended: it is stuck again after a while."""
    heapq.heappush(state.graces, (mono_ns + NS_PER_S, job.id, job.epoch))


def rearm(state: QueueState, policy: Policy, mono_ns: int) -> None:
    """After a replay: a holder that is being stopped gets its whole grace again, since nobody asked it meanwhile."""
    state.graces = [
        (mono_ns + policy.stop_grace_ns, job.id, job.epoch)
        for job in state.jobs.values()
        if job.state is State.CANCELLING
    ]
    heapq.heapify(state.graces)


def next_deadline_ns(state: QueueState, now: Instant) -> int:
    """The steady time at which `passed` or `due` has something to do; at most a second away, for the wall clock."""
    nearest = now.mono_ns + NS_PER_S
    for heap in (state.due_mono, state.deadlines, state.graces):
        if heap and heap[0][0] < nearest:
            nearest = heap[0][0]
    if state.due_wall:
        nearest = min(nearest, now.mono_ns + max(state.due_wall[0][0] - now.wall_ns, NS_PER_MS))
    for worker in state.workers.values():
        if worker.limit_ns and worker.limit_ns < nearest:
            nearest = worker.limit_ns
    return nearest


def forgotten(state: QueueState, policy: Policy, now: Instant) -> list[Fact]:
    """What is past retention: sessions, keys, dead letters; a bounded number at a time. Looks only at what is due."""
    body = Forgotten(_silent(state, policy, now), _old_keys(state, policy, now), _old_deaths(state, policy, now))
    return [Fact(Kind.FORGOTTEN, body)] if body.sessions or body.keys or body.dead else []


def unserved(room: WaitingRoom, policy: Policy, now: Instant) -> list[Fact]:
    """Jobs that no configured worker can run any more, since the configuration was read anew, wait for it to be put
    right, and not for ever: they become dead letters, a bounded number at a time."""
    ends = Ends("", now.wall_ns)
    left = _FORGET_MAX
    for group in room.groups():
        reason = unmatchable(group.service, group.requirements, policy) if group.waiting else ""
        if not reason:
            group.lost_ns = 0
            continue
        group.lost_ns = group.lost_ns or now.mono_ns
        if now.mono_ns - group.lost_ns > policy.unmatchable_keep_ns:
            error = JobError(FailureClass.UNMATCHABLE, reason[:REASON_CHARS_MAX])
            jobs = {job.id: job for job in islice(group.all_waiting(), left)}
            left -= len(jobs)
            for job in jobs.values():
                ends.add(job, Outcome.DEAD, error)
    return ends.facts()


def _silent(state: QueueState, policy: Policy, now: Instant) -> list[int]:
    """Sessions that nobody spoke in for long; those that were seen since, or have open jobs, come to it again later."""
    heap = state.silences
    silent: list[int] = []
    while heap and now.mono_ns - heap[0][0] > policy.session_keep_ns and len(silent) < _FORGET_MAX:
        seen_ns, number = heapq.heappop(heap)
        session = state.sessions.get(number)
        if session is None:
            continue
        if number in state.open_jobs:
            heapq.heappush(heap, (now.mono_ns, number))
        elif session.seen_mono_ns > seen_ns:
            heapq.heappush(heap, (session.seen_mono_ns, number))
        else:
            silent.append(number)
    return silent


def _old_keys(state: QueueState, policy: Policy, now: Instant) -> list[str]:
    heap = state.ended_keys
    old: list[str] = []
    while heap and now.wall_ns - heap[0][0] > policy.idempotency_keep_ns and len(old) < _FORGET_MAX:
        ended_ns, names = heapq.heappop(heap)
        # A name may have been forgotten and used again.
        old += [name for name in names if (key := state.keys.get(name)) is not None and key.ended_ns == ended_ns]
    return old


def _old_deaths(state: QueueState, policy: Policy, now: Instant) -> list[int]:
    """Dead letters past their retention, or the oldest of too many."""
    heap = state.deaths
    if len(heap) > _HEAP_SLACK + 2 * state.dead:
        heap[:] = [entry for entry in heap if _is_death(state, *entry)]
        heapq.heapify(heap)
    old: list[int] = []
    while heap and len(old) < _FORGET_MAX:
        surplus = state.dead - len(old) - policy.dead_jobs_max
        if surplus <= 0 and now.wall_ns - heap[0][0] <= policy.dead_keep_ns:
            break
        died_ns, job_id = heapq.heappop(heap)
        if _is_death(state, died_ns, job_id):
            old.append(job_id)
    return old


def _is_death(state: QueueState, died_ns: int, job_id: int) -> bool:
    """The job is dead since then: it was not retried meanwhile."""
    job = state.jobs.get(job_id)
    return job is not None and job.state is State.DEAD and job.extra is not None and job.extra.died_ns == died_ns
