"""Trimming: only a prefix of the journal is ever removed, and what it still has to say is said again first.

`carry` gives one fact with the full present state of everything whose rows begin at or before the trim point;
the journal writes it and deletes the prefix in one transaction. Rows between the trim point and the carry may then
speak of jobs that replay has not met yet; it passes over them, since the carry knows better.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from empd.job import State
from empd.payload import BlobRef
from empd.queue import rows
from empd.queue.options import OptionsTable
from empd.queue.room import WaitingRoom
from empd.queue.rows import Carry, Fact, Kind
from empd.queue.state import (
    ConnectorState,
    Consumer,
    Extra,
    Job,
    Key,
    QueueState,
    Session,
    bury,
    clocks,
    steady_ns,
    worker_of,
)

_FACT_BYTES = 512 * 1024
_JOB_BYTES = 256
_KEYS_A_FACT = 2_000
_SESSIONS_A_FACT = 32


def trim_point(state: QueueState, oldest_seq: int, newest_seq: int, limits: tuple[int, int]) -> int:
    """The furthest row up to `newest_seq` that can be trimmed with at most `limits` (jobs, payload bytes) carried; at
    least the jobs of one row are. `oldest_seq - 1` when nothing can be trimmed."""
    jobs_max, bytes_max = limits
    size = 0
    for count, job in enumerate(state.jobs.values()):
        if job.touched > newest_seq:
            break
        size += _payload_bytes(job)
        if (count >= jobs_max or size > bytes_max) and job.touched > oldest_seq:
            return job.touched - 1
    return newest_seq


def carry(state: QueueState, upto_seq: int, at_ns: int) -> list[Fact]:
    """What rows up to `upto_seq` still have to say, in facts of a bounded size, for rows at wall time `at_ns`."""
    facts = list(_job_facts(state, upto_seq, steady_ns(state, at_ns)))
    keys = [
        _carried_key(name, key)
        for name, key in takewhile(lambda item: item[1].touched <= upto_seq, state.keys.items())
        if key.ended_ns
    ]
    facts += [_fact(state, keys=keys[i : i + _KEYS_A_FACT]) for i in range(0, len(keys), _KEYS_A_FACT)]
    for name, value in takewhile(lambda item: item[1].touched <= upto_seq, state.connector_states.items()):
        facts.append(_fact(state, states=[rows.StateWritten(name, value.version, value.data)]))
    sessions = [_carried_session(s) for s in takewhile(lambda s: s.touched <= upto_seq, state.sessions.values())]
    facts += [
        _fact(state, sessions=sessions[i : i + _SESSIONS_A_FACT]) for i in range(0, len(sessions), _SESSIONS_A_FACT)
    ]
    cursors = [rows.Cursor(name, c.seq) for name, c in state.consumers.items() if c.touched <= upto_seq]
    facts.append(_fact(state, cursors=cursors))
    return facts


def _job_facts(state: QueueState, upto_seq: int, mono_ns: int) -> Iterator[Fact]:
    """Jobs, each with its idempotency key in the same row: the end of a job says when its key ended, so that no row
    may keep the one without the other."""
    jobs: list[Job] = []
    size = 0
    for job in takewhile(lambda job: job.touched <= upto_seq, state.jobs.values()):
        jobs.append(job)
        size += _payload_bytes(job) + _JOB_BYTES
        if size >= _FACT_BYTES:
            yield _job_fact(state, jobs, mono_ns)
            jobs, size = [], 0
    if jobs:
        yield _job_fact(state, jobs, mono_ns)


def _job_fact(state: QueueState, jobs: list[Job], mono_ns: int) -> Fact:
    names = [job.extra.key for job in jobs if job.extra is not None and job.extra.key]
    keys = [_carried_key(name, state.keys[name]) for name in names if name in state.keys]
    return _fact(state, jobs=[_carried(state, job, mono_ns) for job in jobs], keys=keys)


def _carried_key(name: str, key: Key) -> rows.CarriedKey:
    return rows.CarriedKey(name, key.job, key.fingerprint, key.ended_ns)


def _payload_bytes(job: Job) -> int:
    return len(job.payload) if type(job.payload) is bytes else 0


def _fact(state: QueueState, **said: Any) -> Fact:
    said |= {"next_epoch": state.next_epoch, "clocks": clocks(state)}
    return Fact(Kind.CARRY, Carry(state.boot, state.sessions_opened, sorted(state.drained), **said))


def _carried_session(session: Session) -> rows.CarriedSession:
    answers = [(number, refused, existing) for number, (refused, existing) in session.answers.items()]
    return rows.CarriedSession(
        session.number, session.token, session.name, session.frame_number, session.next_job, answers
    )


def _carried(state: QueueState, job: Job, mono_ns: int) -> rows.CarriedJob:
    extra = job.extra or Extra()
    ready_ns = extra.ready_ns + state.wall_minus_mono_ns if extra.ready_ns else 0
    return rows.CarriedJob(
        id=job.id, options=job.options.raw, payload=job.payload, order=job.order, submitted_ns=job.submitted_ns,
        state=job.state, ready_ns=ready_ns, epoch=job.epoch, started_ns=job.started_ns,
        holder=job.holder.key if job.holder else None, attempts=job.attempts, charges=extra.charges, key=extra.key,
        checkpoint=extra.checkpoint, stop=extra.stop, error=extra.error, age_ns=mono_ns - job.submitted_mono_ns,
        ran_ns=mono_ns - job.limit_ns + job.options.timeout_ns if job.limit_ns else None,
        died_ns=extra.died_ns, doubt=extra.doubt,
    )  # fmt: skip


def restore_carry(
    state: QueueState, room: WaitingRoom, options: OptionsTable, seq: int, at: tuple[int, int], body: Carry
) -> None:
    """Applies a carry that stands at row `seq`. `at`: its (steady, wall) time. It changes nothing in a live state,
    where all that it says holds already, but for the rows from which on things are needed."""
    state.boot = max(state.boot, body.boot)
    state.next_epoch = max(state.next_epoch, body.next_epoch)
    state.sessions_opened = max(state.sessions_opened, body.sessions_opened)
    state.drained = frozenset(body.drained)
    for carried in sorted(body.jobs, key=lambda carried: carried.id):
        job = state.jobs.pop(carried.id, None)
        if job is None:
            job = _restore_job(state, room, options, carried, at)
        job.touched = seq
        state.jobs[job.id] = job
    for said in body.sessions:
        session = state.sessions.pop(said.session, None)
        if session is None:
            session = Session(said.session, said.token, said.name, answers={}, skipped=[], seen_mono_ns=at[0])
            session.frame_number, session.next_job = said.frame_number, said.next_job
            session.answers.update({number: (refused, existing) for number, refused, existing in said.answers})
            heapq.heappush(state.silences, (at[0], said.session))
        session.touched = seq
        state.sessions[said.session] = session
    for key in body.keys:
        if state.keys.pop(key.key, None) is None and key.ended_ns:
            heapq.heappush(state.ended_keys, (key.ended_ns, [key.key]))
        state.keys[key.key] = Key(key.job, key.fingerprint, key.ended_ns, seq)
    for value in body.states:
        state.connector_states.pop(value.key, None)
        state.connector_states[value.key] = ConnectorState(value.version, value.data, seq)
    for cursor in body.cursors:
        state.consumers[cursor.consumer] = Consumer(cursor.seq, seq)


def _restore_job(
    state: QueueState, room: WaitingRoom, table: OptionsTable, carried: rows.CarriedJob, at: tuple[int, int]
) -> Job:
    options = table.get(carried.options)
    mono_ns, wall_ns = at
    age_ns = wall_ns - carried.submitted_ns if carried.age_ns is None else carried.age_ns
    job = Job(
        carried.id, options, carried.payload, carried.order, 0, carried.submitted_ns, mono_ns - age_ns,
        State(carried.state), carried.attempts, carried.epoch, carried.started_ns,
    )  # fmt: skip
    ready_ns = carried.ready_ns - wall_ns + mono_ns if carried.ready_ns else 0
    extra = Extra(
        carried.charges, ready_ns, carried.key, carried.checkpoint, carried.stop, carried.error, doubt=carried.doubt
    )
    if extra != Extra():
        job.extra = extra
    if isinstance(job.payload, BlobRef):
        state.blobs[job.payload.id] = state.blobs.get(job.payload.id, 0) + 1
    else:
        state.payload_bytes += len(job.payload)
    session = job.id >> 32
    state.open_jobs[session] = state.open_jobs.get(session, 0) + 1
    ran_ns = wall_ns - carried.started_ns if carried.ran_ns is None else carried.ran_ns
    _restore_place(state, room, job, carried, mono_ns - ran_ns)
    return job


def _restore_place(
    state: QueueState, room: WaitingRoom, job: Job, carried: rows.CarriedJob, started_mono_ns: int
) -> None:
    options = job.options
    if carried.holder is not None:
        worker = worker_of(state, *carried.holder)
        worker.held[job.id] = job
        job.holder = worker
        if options.timeout_ns and job.state is State.ASSIGNED:
            job.limit_ns = started_mono_ns + options.timeout_ns
            worker.limit_ns = min(worker.limit_ns or job.limit_ns, job.limit_ns)
    elif job.state is State.WAITING:
        room.add(job)
    elif job.state is State.DELAYED:
        ready_ns = job.extra.ready_ns if job.extra else 0
        if ready_ns:
            heapq.heappush(state.due_mono, (ready_ns, job.id, job.attempts))
        else:
            heapq.heappush(state.due_wall, (options.not_before_ns, job.id, job.attempts))
    elif job.state is State.DEAD:
        bury(state, job, carried.died_ns or job.started_ns or job.submitted_ns)
    for limit_ns, kind in ((options.queue_timeout_ns, "queue"), (options.total_timeout_ns, "total")):
        if limit_ns:
            heapq.heappush(state.deadlines, (job.submitted_mono_ns + limit_ns, job.id, kind))
