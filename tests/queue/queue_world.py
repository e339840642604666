"""A whole box in virtual time, around the pure queue: clients, workers and a broker that can be killed between any
two steps. The journal is a list of encoded rows; what was not committed is lost with the broker."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from empd.clock import NS_PER_S, Instant
from empd.errors import FailureClass
from empd.job import Cause, JobGroup, JobOptions, Outcome, State, Submit
from empd.lifecycle import Exit
from empd.queue import carry
from empd.queue.admission import Admission
from empd.queue.evolve import describe
from empd.queue.machine import Queue
from empd.queue.policy import Policy, ServicePolicy, WorkerClass
from empd.queue.rows import Fact, Kind, decode_body
from empd.queue.state import Job, Offer, Worker
from empd.result import DoneJob, FailedJob, JobError

SERVICES = ("alpha", "beta")
CAPABILITIES = ({"memory_gb": 24}, {"memory_gb": 8, "model": ["x"]})
MODELS = (["m0"], ["m1", "m2"])
"""Loaded on workers of each kind."""
_encode = msgspec.msgpack.encode
_decode_submit = msgspec.msgpack.Decoder(Submit).decode
_decode_options = msgspec.msgpack.Decoder(JobOptions).decode


def policy(**changes: object) -> Policy:
    values: dict[str, object] = {
        "services": {name: ServicePolicy(timeout_ns=60 * NS_PER_S, retries=2) for name in SERVICES},
        "classes": (WorkerClass(SERVICES, {}, open_ended=True),),
        "backoff_ns": NS_PER_S,
        "stop_grace_ns": 5 * NS_PER_S,
        "max_crashes": 2,
    }
    return Policy(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class SimulatedWorker:
    """What a worker process holds by itself, whatever the broker believes."""

    name: str
    generation: int
    slots: int
    capabilities: dict[str, object]
    running: dict[int, tuple[int, str]] = field(default_factory=dict)  # job → (epoch, service)
    unsettled: list[DoneFrame] = field(default_factory=list)
    connected: Worker | None = None


class DoneFrame(msgspec.Struct):
    done: list[DoneJob] = []
    failed: list[FailedJob] = []
    cancelled: list[tuple[int, int]] = []


class World:
    """Steps for a test to take, in any order. `check` holds the invariants."""

    def __init__(self, limits: Policy | None = None) -> None:
        self.policy = limits or policy()
        self.mono_ns = 1_000 * NS_PER_S
        self.wall_ns = 1_700_000_000 * NS_PER_S
        self.boot_id = "boot-1"
        self.journal: list[tuple[int, int, int, int, bytes]] = []
        self.committed_seq = 0
        self.workers: dict[str, SimulatedWorker] = {}
        self.dead_workers: list[SimulatedWorker] = []
        self.generations = 0
        self.accepted: set[int] = set()
        self.ends: Counter[int] = Counter()
        self.outcomes: dict[int, int] = {}
        self.executions: Counter[int] = Counter()
        self.crashes_while_held: Counter[int] = Counter()
        self.cancel_asked: set[int] = set()
        self.true_ns = 0  # time that nobody can set
        self.submitted_true_ns: dict[int, int] = {}
        self.queue: Queue = Queue(self.policy)
        self.session_number = 0
        self.frame_number = 0
        self.next_job = 1
        self.unacknowledged: list[tuple[bytes, Submit]] = []
        self._begin()

    # --- time and the broker's life ---

    @property
    def now(self) -> Instant:
        return Instant(self.mono_ns, self.wall_ns)

    def advance(self, seconds: float) -> None:
        self.mono_ns += int(seconds * NS_PER_S)
        self.wall_ns += int(seconds * NS_PER_S)
        self.true_ns += int(seconds * NS_PER_S)

    def set_wall_clock(self, seconds: float) -> None:
        """Somebody sets the clock; steady time goes on."""
        self.commit()
        self.wall_ns += int(seconds * NS_PER_S)
        self.queue.tie_clock(self.now)
        self.commit()

    def _begin(self) -> None:
        self.queue.start(self.boot_id, "test", self.now)
        self.commit()

    def commit(self) -> None:
        """The pass's end: rows become durable, then what they say is told."""
        pending = list(self.queue.pending)
        self.queue.pending.clear()
        for seq, at_ns, fact in pending:
            assert seq == self.committed_seq + 1, "rows are gapless"
            self.journal.append((seq, at_ns, int(fact.kind), fact.origin, fact.encoded()))
            self.committed_seq = seq
        for _, _, fact in pending:
            self._told(fact)

    def _told(self, fact: Fact) -> None:
        if fact.kind is Kind.RESULTS:
            for group in fact.body.groups:
                for job in group.jobs:
                    if job.outcome != Outcome.DEAD:
                        self.ends[job.id] += 1
                    self.outcomes[job.id] = job.outcome
                    if job.outcome == Outcome.EXPIRED:
                        self._check_age(job.id, group.options)
        elif fact.kind is Kind.STOPPING:
            for item in fact.body.jobs:
                worker = self._holder(item.id)
                if worker is not None and worker.connected is not None:
                    self._tell_stop(worker, item.id, item.epoch, item.failure)

    def _check_age(self, job_id: int, options: msgspec.Raw) -> None:
        """What expires is as old as one of its limits says, whatever was done to the clocks and the journal."""
        spec = _decode_options(options)
        limit_s = min(spec.queue_timeout_s or math.inf, spec.total_timeout_s or math.inf)
        age_s = (self.true_ns - self.submitted_true_ns[job_id]) / NS_PER_S
        assert age_s >= limit_s - 0.2, f"job {job_id:x} expired {age_s:g} s after it came, its limit is {limit_s:g} s"

    def _tell_stop(self, worker: SimulatedWorker, job_id: int, epoch: int, failure: str) -> None:
        if worker.running.get(job_id, (0, ""))[0] == epoch:
            del worker.running[job_id]
            self._send_done(worker, DoneFrame(cancelled=[(job_id, epoch)]))

    def _holder(self, job_id: int) -> SimulatedWorker | None:
        job = self.queue.state.jobs.get(job_id)
        if job is None or job.holder is None:
            return None
        worker = self.workers.get(job.holder.name)
        return worker if worker is not None and worker.generation == job.holder.generation else None

    def kill_broker(self, *, host_too: bool = False, offline_s: float = 0.0, clock_step_s: float = 0.0) -> None:
        """kill -9 of the broker at this instant; what was not committed is gone. A new one replays. The wall
        clock may be set while there is no broker to see it; over a boot only back, since forward looks like time."""
        before = describe(self.queue.state) if not self.queue.pending else None
        for worker in self.workers.values():
            worker.connected = None
        self.queue = self.replayed()
        if before is not None:
            assert describe(self.queue.state) == before, "replay gives the same state"
        self.advance(offline_s)
        self.wall_ns += int(clock_step_s * NS_PER_S)
        if host_too:
            self.boot_id += "+"
            self.mono_ns = 10 * NS_PER_S
            self.workers.clear()
        self._begin()
        living = {(w.name, w.generation) for w in self.workers.values()}
        for key in list(self.queue.state.workers):
            if key not in living:
                self._count_crash(key)
                self.queue.gone(key, Exit.HOST_LOST if host_too else Exit.CRASHED, "evidence", self.now)
        self.commit()
        self.resubmit()

    def replayed(self) -> Queue:
        queue = Queue(self.policy)
        if self.journal:
            queue.state.seq = self.journal[0][0] - 1
        for seq, at_ns, kind, origin, body in self.journal:
            queue.replay(seq, at_ns, Fact(Kind(kind), decode_body(kind, body), origin))
        return queue

    def trim(self, fraction: float) -> None:
        """Trims a prefix and checks that replay still gives the same state."""
        self.commit()
        first, last = self.journal[0][0], self.journal[-1][0]
        self.trim_to(first + int((last - first) * fraction))

    def trim_to(self, newest: int) -> None:
        """Trims up to this row."""
        first = self.journal[0][0]
        upto = carry.trim_point(self.queue.state, first, newest, (1_000_000, 1 << 30))
        carried = self.queue.carry(upto, self.now)
        for seq, at_ns, fact in carried:
            self.journal.append((seq, at_ns, int(fact.kind), fact.origin, fact.encoded()))
            self.committed_seq = seq
        self.journal = [row for row in self.journal if row[0] > upto]
        assert describe(self.replayed().state) == describe(self.queue.state), "replay after a trim gives the same state"

    # --- clients ---

    def submit(self, groups: list[tuple[JobOptions, int]], keys: list[str] | None = None) -> None:
        self.frame_number += 1
        wire_groups = [
            JobGroup(msgspec.Raw(_encode(options)), [b"p%d" % (self.next_job + i) for i in range(count)])
            for options, count in groups
        ]
        if keys is not None:
            wire_groups = [JobGroup(wire_groups[0].options, [b"same"] * len(keys), keys)]
        frame = Submit(self.frame_number, self.next_job, wire_groups)
        self.next_job += sum(len(group.payloads) for group in wire_groups)
        raw = _encode(frame)
        self.unacknowledged.append((raw, _decode_submit(raw)))

    def deliver(self) -> None:
        """The broker takes every frame that is on its way; the answers reach the client after the commit."""
        if not self.session_number:
            self.session_number = self.queue.open_session(b"token", "test", self.now).number
        session = self.queue.state.sessions[self.session_number]
        known = set(self.queue.state.jobs)
        for raw, frame in self.unacknowledged:
            self.queue.submit(session, frame, raw, self.now)
        self.note_new(known)

    def note_new(self, known: set[int]) -> None:
        """Jobs that are not among those known before came now."""
        self.submitted_true_ns.update(dict.fromkeys(self.queue.state.jobs.keys() - known, self.true_ns))

    def acknowledge(self) -> None:
        """The pass is committed and the client has read all answers."""
        self.commit()
        session = self.queue.state.sessions.get(self.session_number)
        if session is None:
            return
        for raw, frame in self.unacknowledged:
            answer = self.queue.submit(session, frame, raw, self.now)  # a repeat: the same answer again
            assert not answer.facts
            out = {refusal.index for refusal in answer.refused} | {index for index, _ in answer.existing}
            count = sum(len(group.payloads) for group in frame.groups)
            first = self.session_number << 32 | frame.first
            self.accepted |= {first + i for i in range(count) if i not in out}
        self.unacknowledged.clear()

    def resubmit(self) -> None:
        if self.session_number and self.session_number not in self.queue.state.sessions:
            assert not self.accepted, "a session that was told of is durable"
            self.session_number = 0
        self.deliver()
        self.acknowledge()

    def cancel(self, index: int) -> None:
        jobs = sorted(self.accepted)
        if jobs:
            job_id = jobs[index % len(jobs)]
            self.cancel_asked.add(job_id)
            self.queue.cancel([job_id], self.now)
            self.commit()

    # --- workers ---

    def start_worker(self, name: str, slots: int, kind: int) -> None:
        if name not in self.workers:
            self.generations += 1
            self.workers[name] = SimulatedWorker(name, self.generations, slots, dict(CAPABILITIES[kind]))

    def connect(self, worker: SimulatedWorker) -> None:
        held = [(job_id, epoch) for job_id, (epoch, _) in worker.running.items()]
        for frame in worker.unsettled:
            held += [(item.id, item.epoch) for item in frame.done]
            held += [(item.id, item.epoch) for item in frame.failed]
            held += frame.cancelled
        known, abandon = self.queue.hello(worker.name, worker.generation, held, self.now)
        known.capabilities = worker.capabilities
        models = MODELS[CAPABILITIES.index(worker.capabilities)]
        offers = {service: Offer(worker.slots, models=models) for service in SERVICES}
        self.queue.offer(known, worker.slots, offers, "")
        self.commit()
        worker.connected = known
        for job_id, epoch in abandon:
            if worker.running.get(job_id, (0, ""))[0] == epoch:
                del worker.running[job_id]
        self.queue.abandoned(known, abandon, self.now)
        for frame in worker.unsettled:
            self.queue.done(known, frame, self.now)
        self.commit()
        worker.unsettled.clear()
        for job in list(known.held.values()):
            if job.extra is not None and job.extra.stop:
                self._tell_stop(worker, job.id, job.epoch, job.extra.stop)

    def claim(self, name: str, *, lose: bool = False, loaded: bool = False) -> None:
        """One claim; with `lose` the broker dies after the commit and before the send."""
        worker = self.workers.get(name)
        if worker is None:
            return
        if worker.connected is None:
            self.connect(worker)
        assert worker.connected is not None
        claim = self.queue.claim(worker.connected, self.now, loaded=loaded)
        if claim is None:
            return
        taken = [(job, group) for group in claim.groups for job in group.jobs]
        assert len(worker.connected.held) <= worker.slots
        self.commit()
        if lose:
            self.kill_broker()
            return
        for job, _ in taken:
            spec = self.queue.state.jobs[job.id].options.spec
            self._run(worker, job.id, job.epoch, spec)

    def _run(self, worker: SimulatedWorker, job_id: int, epoch: int, spec: JobOptions) -> None:
        for other in self.workers.values():
            assert job_id not in other.running, "two live workers run one job"
        assert spec.service in SERVICES
        for key, need in (spec.requirements or {}).items():
            assert worker.capabilities[key] >= need, "a job runs only where its requirements allow"
        worker.running[job_id] = (epoch, spec.service)
        self.executions[job_id] += 1

    def finish(self, name: str, how: str, count: int, *, lose: bool = False) -> None:
        worker = self.workers.get(name)
        if worker is None or not worker.running:
            return
        frame = DoneFrame()
        for job_id, (epoch, _) in list(worker.running.items())[:count]:
            del worker.running[job_id]
            if how == "done":
                frame.done.append(DoneJob(job_id, epoch, b"r"))
            else:
                error = JobError(FailureClass.INTERNAL, "simulated")
                frame.failed.append(FailedJob(job_id, epoch, error, how == "retry", int(Cause.JOB_FAULT)))
        if lose:  # the broker has it, and dies before the commit
            if worker.connected is not None:
                self.queue.done(worker.connected, frame, self.now)
            worker.unsettled.append(frame)
            self.kill_broker()
        else:
            self._send_done(worker, frame)

    def _send_done(self, worker: SimulatedWorker, frame: DoneFrame) -> None:
        worker.unsettled.append(frame)
        if worker.connected is None:
            return
        self.queue.done(worker.connected, frame, self.now)
        before = self.queue.stale_completions
        self.queue.done(worker.connected, frame, self.now)  # said twice: the second writes nothing
        items = len(frame.done) + len(frame.failed) + len(frame.cancelled)
        assert self.queue.stale_completions == before + items
        self.commit()
        worker.unsettled.remove(frame)

    def kill_worker(self, name: str, how: Exit) -> None:
        worker = self.workers.pop(name, None)
        if worker is None:
            return
        self._count_crash((worker.name, worker.generation))
        self.queue.gone((worker.name, worker.generation), how, "evidence", self.now)
        self.commit()

    def _count_crash(self, key: tuple[str, int]) -> None:
        holder = self.queue.state.workers.get(key)
        self.crashes_while_held.update(list(holder.held) if holder is not None else ())

    def tick(self) -> None:
        for stuck, _ in self.queue.tick(self.now):
            self.kill_worker(stuck.name, Exit.HUNG)
        self.commit()

    # --- invariants ---

    def check(self) -> None:
        state = self.queue.state
        for job_id in self.accepted:
            unfinished = job_id in state.jobs
            assert unfinished != bool(self.ends[job_id]), f"job {job_id:x} is lost or both ended and unfinished"
        assert all(count == 1 for count in self.ends.values()), "a job ends once"
        places = [(job.touched, job.id) for job in state.jobs.values()]
        assert places == sorted(places), "what lists jobs page by page, and what trims, goes by this order"
        epochs = [job.epoch for job in state.jobs.values() if job.epoch]
        assert len(epochs) == len(set(epochs)), "epochs do not repeat"
        for worker in state.workers.values():
            for job in worker.held.values():
                assert job.holder is worker
                assert job.state in (State.ASSIGNED, State.CANCELLING)
        waiting = sum(group.waiting for group in self.queue.room.groups())
        assert waiting == sum(job.state is State.WAITING for job in state.jobs.values())
        assert state.payload_bytes == sum(len(job.payload) for job in state.jobs.values())

    def drain(self) -> None:
        """Runs everything to its end."""
        self.deliver()
        self.acknowledge()
        for _ in range(2_000):
            if all(job.state is State.DEAD for job in self.queue.state.jobs.values()):
                break
            self.start_worker("last-0", 4, 0)
            self.start_worker("last-1", 4, 1)
            self.advance(30)
            self.tick()
            for name in list(self.workers):
                self.claim(name)
                self.finish(name, "done", 100)
            self.tick()
        self.check()
        state = self.queue.state
        left = [job for job in state.jobs.values() if job.state is not State.DEAD]
        assert not left, f"every accepted job ends: {left}"
        assert all(self.queue.policy.max_crashes <= self.crashes_while_held[job.id] for job in state.jobs.values())
        assert not any(group.waiting for group in self.queue.room.groups())
        assert not any(worker.held for worker in state.workers.values())


class Bench(World):
    """A world with one session and one worker, whose parts are called one by one."""

    def __init__(self, limits: Policy | None = None, slots: int = 4) -> None:
        super().__init__(limits)
        self.session_number = self.queue.open_session(b"token", "test", self.now).number
        self.start_worker("w0", slots, 0)
        self.connect(self.workers["w0"])

    @property
    def worker(self) -> Any:
        return self.workers["w0"].connected

    def say(self, options: JobOptions | bytes, *payloads: Any, commit: bool = True) -> Admission:
        raw_options = options if isinstance(options, bytes) else _encode(options)
        self.frame_number += 1
        raw = _encode(
            Submit(self.frame_number, self.next_job, [JobGroup(msgspec.Raw(raw_options), list(payloads or [b"p"]))])
        )
        self.next_job += len(payloads or [b"p"])
        session = self.queue.state.sessions[self.session_number]
        known = set(self.jobs)
        answer = self.queue.submit(session, _decode_submit(raw), raw, self.now)
        self.note_new(known)
        if commit:
            self.commit()
        return answer

    def run(self) -> list[Job]:
        """The worker claims; the jobs it holds then."""
        self.claim("w0")
        return list(self.worker.held.values())

    def fail(self, job: Job, **said: Any) -> None:
        failed = FailedJob(job.id, job.epoch, JobError(FailureClass.INTERNAL, "no"), True, **said)
        self.workers["w0"].running.pop(job.id, None)
        self.queue.done(self.worker, DoneFrame(failed=[failed]), self.now)
        self.commit()

    @property
    def jobs(self) -> dict[int, Job]:
        return self.queue.state.jobs

    def rows_of(self, kind: Kind) -> list[bytes]:
        return [body for _, _, row_kind, _, body in self.journal if row_kind == kind]


ALPHA = JobOptions(service="alpha")


def alpha(**said: Any) -> bytes:
    return _encode(msgspec.structs.replace(ALPHA, **said))
