"""`evolve`: what each fact does to the state. Live traffic and replay run the same functions.

A row may speak of jobs that are not there: their beginning was trimmed and their state carried, or they ended. It
then does nothing to them. What a row says is never judged here.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from typing import Any

from empd.job import State
from empd.payload import BlobRef, Carried
from empd.queue import rows
from empd.queue.attempts import Attempts
from empd.queue.carry import restore_carry
from empd.queue.options import OptionsTable
from empd.queue.room import WaitingRoom
from empd.queue.rows import Fact, Kind
from empd.queue.state import (
    ConnectorState,
    Consumer,
    Extra,
    Job,
    Key,
    Options,
    QueueState,
    Session,
    count_open,
    extra_of,
    steady_ns,
)

HISTORY = "history"
_ANSWERS_KEPT = 256


class Evolver:
    """Applies rows to a state, in their order."""

    def __init__(self, state: QueueState, room: WaitingRoom, options: OptionsTable) -> None:
        self.state = state
        self.room = room
        self.options = options
        self.attempts = Attempts(state, room, options)
        self._apply: dict[Kind, Callable[[int, int, Fact], None]] = {
            Kind.STARTED: self._started,
            Kind.CLOCK: self._clock,
            Kind.SESSION: self._session,
            Kind.SUBMITTED: self._submitted,
            Kind.TAKEN: self._taken,
            Kind.ASSIGNED: self.attempts.assigned,
            Kind.RESULTS: self.attempts.results,
            Kind.REQUEUED: self.attempts.requeued,
            Kind.STOPPING: self.attempts.stopping,
            Kind.RETRIED: self.attempts.retried,
            Kind.CHECKPOINT: self.attempts.checkpoint,
            Kind.STATE: self._connector_state,
            Kind.CURSOR: self._cursor,
            Kind.OPERATED: self._operated,
            Kind.FORGOTTEN: self._forgotten,
            Kind.CARRY: self._carry,
        }

    def evolve(self, at_ns: int, fact: Fact) -> int:
        """Applies one fact as the next row, at wall time `at_ns`; returns its seq."""
        seq = self.state.seq = self.state.seq + 1
        self._apply[fact.kind](seq, at_ns, fact)
        self.state.at_ns = at_ns
        return seq

    # --- the broker itself ---

    def _started(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Started = fact.body
        state = self.state
        state.boot = body.boot
        state.next_epoch = body.boot << 32 | 1
        state.sessions_opened = max(state.sessions_opened, body.sessions_opened)
        tie(self.state, at_ns, body.before, (body.boot_id, at_ns - body.mono_ns))

    def _clock(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Clock = fact.body
        tie(self.state, at_ns, body.before, (body.boot_id, at_ns - body.mono_ns))

    # --- clients ---

    def _session(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.SessionOpened = fact.body
        state = self.state
        state.sessions_opened = max(state.sessions_opened, body.session)
        mono_ns = steady_ns(state, at_ns)
        state.sessions[body.session] = Session(
            body.session, body.token, body.name, touched=seq, seen_mono_ns=mono_ns, answers={}, skipped=[]
        )
        heapq.heappush(state.silences, (mono_ns, body.session))

    def _submitted(self, seq: int, at_ns: int, fact: Fact) -> None:
        submit = fact.body
        first = job_id = fact.origin << 32 | submit.first
        mono_ns = steady_ns(self.state, at_ns)
        for group in submit.groups:
            options = self.options.get(group.options)
            jobs = [Job(job_id + i, options, p, seq, seq, at_ns, mono_ns) for i, p in enumerate(group.payloads)]
            self._enter(jobs, options, at_ns)
            if group.keys:
                for job, key in zip(jobs, group.keys, strict=True):
                    self._remember_key(job, key)
            job_id += len(jobs)
        count_open(self.state, fact.origin, job_id - first)
        self._advance(fact.origin, submit.number, submit.first + job_id - first)

    def _taken(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Taken = fact.body
        submit = rows.decode_submit(bytes(body.submit))
        left_out = {refusal.index for refusal in body.refused} | {index for index, _ in body.existing}
        mono_ns = steady_ns(self.state, at_ns)
        index = 0
        for group in submit.groups:
            options = None
            for position, payload in enumerate(group.payloads):
                if index not in left_out:
                    options = options or self.options.get(group.options)
                    job = Job(fact.origin << 32 | submit.first + index, options, payload, seq, seq, at_ns, mono_ns)
                    self._enter([job], options, at_ns)
                    if group.keys:
                        self._remember_key(job, group.keys[position])
                index += 1
        count_open(self.state, fact.origin, index - len(left_out))
        session = self.state.sessions.get(fact.origin)
        if session is not None:
            for number, refusals in body.skipped:
                session.answers[number] = (refusals, [])
            session.skipped.clear()
            session.answers[submit.number] = (body.refused, body.existing)
            while len(session.answers) > _ANSWERS_KEPT:
                del session.answers[next(iter(session.answers))]
        self._advance(fact.origin, submit.number, submit.first + index)

    def _advance(self, session_number: int, frame_number: int, next_job: int) -> None:
        session = self.state.sessions.get(session_number)
        if session is not None:  # else it is carried, with all this, by a later row
            session.frame_number = frame_number
            session.next_job = next_job

    def _enter(self, jobs: list[Job], options: Options, at_ns: int) -> None:
        state = self.state
        held = state.jobs
        size = 0
        for job in jobs:
            held[job.id] = job
            payload = job.payload
            size += len(payload) if type(payload) is bytes else self._refer(payload)
        state.payload_bytes += size
        for limit_ns, kind in ((options.queue_timeout_ns, "queue"), (options.total_timeout_ns, "total")):
            if limit_ns:
                for job in jobs:
                    heapq.heappush(state.deadlines, (job.submitted_mono_ns + limit_ns, job.id, kind))
        if options.not_before_ns > at_ns:
            for job in jobs:
                job.state = State.DELAYED
                heapq.heappush(state.due_wall, (options.not_before_ns, job.id, 0))
        else:
            self.room.append(options.group, jobs)

    def _refer(self, payload: Carried) -> int:
        assert isinstance(payload, BlobRef)
        self.state.blobs[payload.id] = self.state.blobs.get(payload.id, 0) + 1
        return 0  # the spool has a bound of its own

    def _remember_key(self, job: Job, key: str) -> None:
        if key:
            extra_of(job).key = key
            fingerprint = payload_fingerprint(job.options.spec.service, job.payload)
            self.state.keys[key] = Key(job.id, fingerprint, 0, job.touched)

    # --- everything else that is remembered ---

    def _connector_state(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.StateWritten = fact.body
        self.state.connector_states.pop(body.key, None)  # kept in the order of rows
        self.state.connector_states[body.key] = ConnectorState(body.version, body.data, seq)

    def _cursor(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Cursor = fact.body
        self.state.consumers[body.consumer] = Consumer(body.seq, seq)
        if body.consumer == HISTORY:
            forget_recent(self.state, body.seq)

    def _operated(self, seq: int, at_ns: int, fact: Fact) -> None:
        self.state.drained = frozenset(fact.body.drained)

    def _forgotten(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Forgotten = fact.body
        state = self.state
        for session in body.sessions:
            state.sessions.pop(session, None)
        for key in body.keys:
            state.keys.pop(key, None)
        for consumer in body.consumers:
            state.consumers.pop(consumer, None)
        for job_id in body.dead:
            job = state.jobs.pop(job_id, None)
            if job is not None:
                count_open(self.state, job_id >> 32, -1)
                if keys := self.attempts.end([job], at_ns):
                    heapq.heappush(state.ended_keys, (at_ns, keys))

    def _carry(self, seq: int, at_ns: int, fact: Fact) -> None:
        body: rows.Carry = fact.body
        if body.clocks is not None and not self.state.boot_id:
            tie(self.state, at_ns, body.clocks, body.clocks)
        restore_carry(self.state, self.room, self.options, seq, (steady_ns(self.state, at_ns), at_ns), body)


def payload_fingerprint(service: str, payload: Carried) -> bytes:
    """Equal for equal payloads of one service; 16 bytes."""
    digest = hashlib.blake2b(service.encode(), digest_size=16)
    digest.update(payload if isinstance(payload, bytes) else f"{payload.size}:{payload.crc32}".encode())
    return digest.digest()


def forget_recent(state: QueueState, through_seq: int) -> None:
    """History holds everything that ended up to this row."""
    recent = state.recent
    while state.recent_rows and state.recent_rows[0][0] <= through_seq:
        for job_id in state.recent_rows.popleft()[1]:
            recent.pop(job_id, None)


def tie(state: QueueState, at_ns: int, before: tuple[str, int] | None, after: tuple[str, int]) -> None:
    """A row at wall time `at_ns` says how the clocks lie, (boot id, wall minus steady time), and lay `before`.

    Within one kernel boot steady times stay as they are. Into another boot they are carried by the wall time that
    passed since the newest row, of which none passed where the clock was set back meanwhile. As long as no row has
    tied the clocks (it was trimmed) steady time stands for wall time.
    """
    if before is not None and not state.boot_id:
        shift_steady_times(state, -before[1])
        state.boot_id, state.wall_minus_mono_ns = before
    boot_id, offset_ns = after
    if state.boot_id != boot_id:
        newest_mono_ns = steady_ns(state, state.at_ns)
        passed_ns = max(at_ns - state.at_ns, 0)
        shift_steady_times(state, at_ns - offset_ns - passed_ns - newest_mono_ns)
        state.boot_id = boot_id
    state.wall_minus_mono_ns = offset_ns


def shift_steady_times(state: QueueState, shift_ns: int) -> None:
    """Steady time began anew: everything that is measured by it moves."""
    state.deadlines = [(when + shift_ns, job, kind) for when, job, kind in state.deadlines]
    state.due_mono = [(when + shift_ns, job, attempts) for when, job, attempts in state.due_mono]
    for job in state.jobs.values():
        job.submitted_mono_ns += shift_ns
        if job.limit_ns:
            job.limit_ns += shift_ns
        if job.extra is not None and job.extra.ready_ns:
            job.extra.ready_ns += shift_ns
    for worker in state.workers.values():
        if worker.limit_ns:
            worker.limit_ns += shift_ns
    for session in state.sessions.values():
        session.seen_mono_ns += shift_ns
    state.silences = [(seen + shift_ns, session) for seen, session in state.silences]


def due(state: QueueState, room: WaitingRoom, mono_ns: int, wall_ns: int) -> None:
    """Moves jobs whose time has come into the waiting room."""
    for heap, now in ((state.due_mono, mono_ns), (state.due_wall, wall_ns)):
        while heap and heap[0][0] <= now:
            _, job_id, attempts = heapq.heappop(heap)
            job = state.jobs.get(job_id)
            if job is not None and job.state is State.DELAYED and job.attempts == attempts:
                job.state = State.WAITING
                room.add(job)


def describe(state: QueueState) -> dict[str, Any]:
    """The facts of a state as plain values: equal for equal states."""
    return {
        "boot": state.boot,
        "next_epoch": state.next_epoch,
        "drained": sorted(state.drained),
        "jobs": {
            job.id: (
                bytes(job.options.raw), job.payload, job.order, job.submitted_ns, max(job.state, State.DELAYED),
                job.attempts, job.epoch, job.holder.key if job.holder else None, _plain(job.extra),
                job.submitted_mono_ns, job.limit_ns,
            )
            for job in state.jobs.values()
        },
        "sessions": {s.number: (s.token, s.frame_number, s.next_job) for s in state.sessions.values()},
        "open_jobs": dict(state.open_jobs),
        "keys": {name: (key.job, key.fingerprint, key.ended_ns) for name, key in state.keys.items()},
        "states": {name: (value.version, value.data) for name, value in state.connector_states.items()},
        "consumers": {name: consumer.seq for name, consumer in state.consumers.items()},
        "payload_bytes": state.payload_bytes,
        "dead": state.dead,
        "blobs": dict(state.blobs),
    }  # fmt: skip


def _plain(extra: Extra | None) -> Extra | None:
    return None if extra is None or extra == Extra() else extra
