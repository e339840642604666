"""Trimming: only a prefix of the journal is ever removed, and what it still has to say is said again first.

`carry` gives one fact with the full present state of everything whose rows begin at or before the trim point;
the journal writes it and deletes the prefix in one transaction. Rows between the trim point and the carry may then
speak of jobs that replay has not met yet; it passes over them, since the carry knows better.
"""

from __future__ import annotations

import heapq
from itertools import takewhile

from empd.job import State
from empd.payload import BlobRef
from empd.queue import rows
from empd.queue.options import OptionsTable
from empd.queue.room import WaitingRoom
from empd.queue.rows import Carry, Fact, Kind
from empd.queue.state import ConnectorState, Consumer, Extra, Job, Key, QueueState, Session, worker_of


def trim_point(state: QueueState, oldest_seq: int, newest_seq: int, jobs_max: int) -> int:
    """The furthest row up to `newest_seq` that can be trimmed with at most `jobs_max` jobs carried (at least the
    rows of one job are). `oldest_seq - 1` when nothing can be trimmed."""
    for count, job in enumerate(state.jobs.values()):
        if job.touched > newest_seq:
            break
        if count >= jobs_max and job.touched > oldest_seq:
            return job.touched - 1
    return newest_seq


def carry(state: QueueState, upto_seq: int) -> Fact:
    """What rows up to `upto_seq` still have to say."""
    return Fact(
        Kind.CARRY,
        Carry(
            boot=state.boot,
            sessions_opened=state.sessions_opened,
            drained=sorted(state.drained),
            next_epoch=state.next_epoch,
            jobs=[_carried(job) for job in takewhile(lambda job: job.touched <= upto_seq, state.jobs.values())],
            sessions=[
                rows.CarriedSession(
                    s.number, s.token, s.name, s.frame_number, s.next_job,
                    [(number, refused, existing) for number, (refused, existing) in s.answers.items()],
                )
                for s in state.sessions.values() if s.touched <= upto_seq
            ],
            keys=[
                rows.CarriedKey(name, key.job, key.fingerprint, key.ended_ns)
                for name, key in state.keys.items() if key.touched <= upto_seq
            ],
            states=[
                rows.StateWritten(name, value.version, value.data)
                for name, value in state.connector_states.items() if value.touched <= upto_seq
            ],
            cursors=[
                rows.Cursor(name, consumer.seq)
                for name, consumer in state.consumers.items() if consumer.touched <= upto_seq
            ],
        ),
    )  # fmt: skip


def _carried(job: Job) -> rows.CarriedJob:
    extra = job.extra or Extra()
    return rows.CarriedJob(
        id=job.id, options=job.options.raw, payload=job.payload, order=job.order, submitted_ns=job.submitted_ns,
        state=job.state, ready_ns=extra.ready_ns, epoch=job.epoch, started_ns=job.started_ns,
        holder=job.holder.key if job.holder else None, attempts=job.attempts, charges=extra.charges, key=extra.key,
        checkpoint=extra.checkpoint, stop=extra.stop, error=extra.error,
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
    for carried in body.jobs:
        job = state.jobs.pop(carried.id, None)
        if job is None:
            job = _restore_job(state, room, options, carried, at)
        job.touched = seq
        state.jobs[job.id] = job
    for said in body.sessions:
        session = state.sessions.get(said.session)
        if session is None:
            session = Session(said.session, said.token, said.name, answers={}, skipped=[], seen_mono_ns=at[0])
            session.frame_number, session.next_job = said.frame_number, said.next_job
            session.answers.update({number: (refused, existing) for number, refused, existing in said.answers})
            state.sessions[said.session] = session
        session.touched = seq
    for key in body.keys:
        state.keys[key.key] = Key(key.job, key.fingerprint, key.ended_ns, seq)
    for value in body.states:
        state.connector_states[value.key] = ConnectorState(value.version, value.data, seq)
    for cursor in body.cursors:
        state.consumers[cursor.consumer] = Consumer(cursor.seq, seq)


def _restore_job(
    state: QueueState, room: WaitingRoom, table: OptionsTable, carried: rows.CarriedJob, at: tuple[int, int]
) -> Job:
    options = table.get(carried.options)
    job = Job(
        carried.id, options, carried.payload, carried.order, 0, carried.submitted_ns, State(carried.state),
        carried.attempts, carried.epoch, carried.started_ns,
    )  # fmt: skip
    extra = Extra(carried.charges, carried.ready_ns, carried.key, carried.checkpoint, carried.stop, carried.error)
    if extra != Extra():
        job.extra = extra
    if isinstance(job.payload, BlobRef):
        state.blobs[job.payload.id] = state.blobs.get(job.payload.id, 0) + 1
    else:
        state.payload_bytes += len(job.payload)
    session = job.id >> 32
    state.open_jobs[session] = state.open_jobs.get(session, 0) + 1
    _restore_place(state, room, job, carried.holder, at)
    return job


def _restore_place(
    state: QueueState, room: WaitingRoom, job: Job, holder: tuple[str, int] | None, at: tuple[int, int]
) -> None:
    mono_ns, wall_ns = at
    options = job.options
    if holder is not None:
        worker = worker_of(state, *holder)
        worker.held[job.id] = job
        job.holder = worker
        if options.timeout_ns and job.state is State.ASSIGNED:
            job.limit_ns = mono_ns - wall_ns + job.started_ns + options.timeout_ns
            worker.limit_ns = min(worker.limit_ns or job.limit_ns, job.limit_ns)
    elif job.state is State.WAITING:
        room.add(job)
    elif job.state is State.DELAYED:
        ready_ns = job.extra.ready_ns if job.extra else 0
        if ready_ns:
            heapq.heappush(state.due_mono, (mono_ns + max(ready_ns - wall_ns, 0), job.id))
        else:
            heapq.heappush(state.due_wall, (options.not_before_ns, job.id))
    elif job.state is State.DEAD:
        state.dead += 1
    submitted_mono_ns = mono_ns - wall_ns + job.submitted_ns
    for limit_ns, kind in ((options.queue_timeout_ns, "queue"), (options.total_timeout_ns, "total")):
        if limit_ns:
            heapq.heappush(state.deadlines, (submitted_mono_ns + limit_ns, job.id, kind))
