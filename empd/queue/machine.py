"""The queue as one object: a pure state machine around `decide` and `evolve`.

Each method takes one event and the present moment, decides, evolves, and leaves the new facts in `pending`, in
their order, for the shell to journal; what has to be sent is returned or follows from the facts. No I/O, no clock,
no randomness: the same calls give the same facts.

    decide   admission, claims, outcomes, requests, deadlines
    evolve   evolve, carry
    index    room
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from empd.clock import NS_PER_S, Instant
from empd.job import State, Submit
from empd.lifecycle import Exit
from empd.queue import admission, claims, deadlines, outcomes, requests, rows
from empd.queue.carry import carry
from empd.queue.evolve import Evolver, due, forget_recent
from empd.queue.options import OptionsTable
from empd.queue.policy import Policy
from empd.queue.room import WaitingRoom
from empd.queue.rows import Fact, Kind
from empd.queue.state import Job, Offer, QueueState, Session, Worker, clocks, worker_of

Pending = list[tuple[int, int, Fact]]
"""(seq, wall time, fact), to be journaled."""

DOUBT_CHARS_MAX = 1_000

_CLOCK_STEP_NS = NS_PER_S // 10
"""What the clocks may lie apart from what a row says: less than any limit that is worth setting, more than a reading
of both takes."""


class Lost(NamedTuple):
    """Numbers that rows which are gone may have given out."""

    boots: int = 0
    sessions: int = 0


NOTHING_LOST = Lost()


class StaleState(Exception):
    """A connector's state was set under a stale epoch or version."""


class Queue:
    """The state, and everything that can happen to it."""

    def __init__(self, policy: Policy) -> None:
        self.state = QueueState()
        self.room = WaitingRoom()
        self.options = OptionsTable(policy, self.room)
        self.evolver = Evolver(self.state, self.room, self.options)
        self.pending: Pending = []
        self.stale_completions = 0

    @property
    def policy(self) -> Policy:
        """The limits that hold now."""
        return self.options.policy

    # --- facts ---

    def replay(self, seq: int, at_ns: int, fact: Fact) -> None:
        """Applies a journaled row."""
        self.state.seq = seq - 1
        self.evolver.evolve(at_ns, fact)

    def apply(self, facts: Iterable[Fact], now: Instant) -> None:
        """Evolves new facts and queues them for the journal."""
        for fact in facts:
            self.pending.append((self.evolver.evolve(now.wall_ns, fact), now.wall_ns, fact))

    def start(self, boot_id: str, version: str, now: Instant, lost: Lost = NOTHING_LOST) -> None:
        """Begins the next boot. Its row has to be committed before the first claim. After a loss of rows `lost` says
        how many boots and sessions to pass over, so that no epoch and no job id is given twice."""
        state = self.state
        boot, sessions = state.boot + 1 + lost.boots, state.sessions_opened + lost.sessions
        body = rows.Started(boot, boot_id, now.mono_ns, version, sessions, clocks(state))
        self.apply([Fact(Kind.STARTED, body)], now)
        deadlines.rearm(self.state, self.policy, now.mono_ns)
        self.room.refill(self.state.jobs.values())

    def tie_clock(self, now: Instant) -> None:
        """Notices that the wall clock was set, and journals how the two clocks lie now. Limits count steady time, so
        that nothing that runs or waits is hurt by it."""
        state = self.state
        if abs(now.wall_ns - now.mono_ns - state.wall_minus_mono_ns) > _CLOCK_STEP_NS:
            self.apply([Fact(Kind.CLOCK, rows.Clock(state.boot_id, now.mono_ns, clocks(state)))], now)

    def carry(self, upto_seq: int, now: Instant) -> Pending:
        """The facts that let rows up to `upto_seq` be trimmed; evolved, for the journal to write while it trims."""
        forget_recent(self.state, upto_seq)  # their rows go
        facts = carry(self.state, upto_seq, now.wall_ns)
        return [(self.evolver.evolve(now.wall_ns, fact), now.wall_ns, fact) for fact in facts]

    # --- clients ---

    def open_session(self, token: bytes, name: str, now: Instant) -> Session:
        """A new session."""
        number = self.state.sessions_opened + 1
        self.apply([Fact(Kind.SESSION, rows.SessionOpened(number, token, name), number)], now)
        return self.state.sessions[number]

    def submit(
        self, session: Session, frame: Submit, raw: bytes, now: Instant, outside: admission.Outside = admission.OPEN
    ) -> admission.Admission:
        """Takes or refuses the jobs of a frame. Raises ValueError when the frame is out of turn."""
        session.seen_mono_ns = now.mono_ns
        answer = admission.submit(self.state, self.options, session, frame, raw, outside)
        self.apply(answer.facts, now)
        return answer

    def cancel(self, ids: Iterable[int], now: Instant) -> requests.Cancelled:
        """Cancels jobs."""
        outcome = requests.cancel(self.state, ids, now.wall_ns)
        self.apply(outcome.facts, now)
        return outcome

    def retry(self, ids: Iterable[int], now: Instant) -> list[int]:
        """Gives dead-lettered jobs another chance."""
        facts, retried = requests.retry(self.state, ids)
        self.apply(facts, now)
        return retried

    def operate(self, drained: Iterable[str], now: Instant) -> None:
        """Sets which workers (`*`: all) get no claims."""
        self.apply([Fact(Kind.OPERATED, rows.Operated(sorted(set(drained))))], now)

    def move_cursor(self, consumer: str, seq: int, now: Instant) -> None:
        """A consumer of the event stream has processed rows up to `seq`. A cursor never goes back, and does not
        move for the row alone that said where it was."""
        known = self.state.consumers.get(consumer)
        if known is None or (seq > known.seq and seq > known.touched):
            self.apply([Fact(Kind.CURSOR, rows.Cursor(consumer, seq))], now)

    # --- workers ---

    def hello(
        self, name: str, generation: int, held: Iterable[tuple[int, int]], now: Instant
    ) -> tuple[Worker, list[tuple[int, int]]]:
        """A worker incarnation connected and says what it holds. Returns it, and what it has to abandon first."""
        worker = worker_of(self.state, name, generation)
        said = set(held)
        lost = [job for job in worker.held.values() if (job.id, job.epoch) not in said]
        # What it got it names until the outcome is settled: of these it has never heard.
        self.apply(outcomes.given_back(self.policy, worker, lost, now.wall_ns, unbegun=True), now)
        abandon = [
            (job_id, epoch)
            for job_id, epoch in sorted(said)
            if (job := worker.held.get(job_id)) is None or job.epoch != epoch
        ]
        worker.connected = True
        worker.abandoning = set(abandon)
        self.state.workers[worker.key] = worker
        return worker, abandon

    def offer(self, worker: Worker, slots: int, offers: dict[str, Offer], reason: str) -> None:
        """The worker says what it takes now."""
        worker.slots = slots
        worker.reason = reason
        worker.offers = offers
        worker.loaded = any(offer.models for offer in offers.values())
        worker.limited = any(0 < offer.slots < slots for offer in offers.values())
        worker.queues = [
            (service, self.room.queue(service, worker.capabilities)) for service, offer in offers.items() if offer.slots
        ]

    def done(self, worker: Worker, frame: outcomes.DoneFrame, now: Instant) -> None:
        """Outcomes of attempts."""
        verdict = outcomes.done(self.policy, worker, frame, now.wall_ns)
        self.stale_completions += verdict.stale
        self.apply(verdict.facts, now)
        if worker.abandoning:
            said = [(item.id, item.epoch) for item in frame.done] + [(item.id, item.epoch) for item in frame.failed]
            worker.abandoning.difference_update(said, frame.cancelled)

    def abandoned(self, worker: Worker, jobs: list[tuple[int, int]], now: Instant) -> None:
        """The worker has stopped these and says nothing more of them."""
        worker.abandoning.difference_update(jobs)
        given = [job for i, epoch in jobs if (job := worker.held.get(i)) is not None and job.epoch == epoch]
        self.apply(outcomes.given_back(self.policy, worker, given, now.wall_ns), now)

    def gone(self, key: tuple[str, int], how: Exit, evidence: str, now: Instant) -> None:
        """A worker incarnation is dead with its whole process tree."""
        worker = self.state.workers.get(key)
        if worker is None:
            return
        worker.connected = False
        worker.queues = []
        self.apply(outcomes.gone(self.policy, worker, how, evidence, now.wall_ns), now)
        self.state.workers.pop(key, None)

    def claim(self, worker: Worker, now: Instant, *, loaded: bool = False) -> claims.Claim | None:
        """Gives the worker what it has slots for; `loaded`: only what names models that it has loaded."""
        claim = claims.claim(self.evolver, worker, now.wall_ns, loaded=loaded)
        if claim is not None:
            self.state.seq += 1
            self.pending.append((self.state.seq, now.wall_ns, claim.fact))
        return claim

    # --- what attempts keep ---

    def checkpoint(self, worker: Worker, fence: tuple[int, int], data: bytes, now: Instant, doubt: str = "") -> None:
        """Keeps a job's state for its next attempt. `fence`: (id, epoch). Raises StaleState when the epoch does not
        hold the job."""
        job_id, epoch = fence
        _fenced(worker, job_id, epoch)
        if len(data) > self.policy.checkpoint_bytes_max:
            raise ValueError(f"a checkpoint has at most {self.policy.checkpoint_bytes_max} bytes, this has {len(data)}")
        self.apply([Fact(Kind.CHECKPOINT, rows.Checkpointed(job_id, data, doubt[:DOUBT_CHARS_MAX]))], now)

    def set_state(
        self, worker: Worker, fence: tuple[int, int], key: str, expected_version: int, data: bytes, now: Instant
    ) -> int:
        """Sets a connector's own state; returns its new version. Raises StaleState as the fence or the version asks."""
        _fenced(worker, *fence)
        known = self.state.connector_states.get(key)
        version = known.version if known is not None else 0
        if version != expected_version:
            raise StaleState(f"state {key!r} has version {version}, not {expected_version}; read it again")
        if len(data) > self.policy.checkpoint_bytes_max:
            raise ValueError(f"a state has at most {self.policy.checkpoint_bytes_max} bytes, this has {len(data)}")
        if known is None and len(self.state.connector_states) >= self.policy.states_max:
            raise ValueError(f"there are {self.policy.states_max} states already")
        self.apply([Fact(Kind.STATE, rows.StateWritten(key, version + 1, data))], now)
        return version + 1

    # --- time ---

    def tick(self, now: Instant) -> list[tuple[Worker, Job]]:
        """What time brings; returns the workers that did not stop a job in time, each with that job."""
        due(self.state, self.room, now.mono_ns, now.wall_ns)
        passed = deadlines.passed(self.state, now)
        self.apply(passed.facts, now)
        return passed.stuck

    def stalled(self, job: Job, now: Instant) -> None:
        """The job has not moved for its service's progress limit."""
        if job.state is State.ASSIGNED:
            self.apply([deadlines.stalled(job)], now)

    def forget(self, now: Instant) -> None:
        """Retention; to be called now and then."""
        self.apply(deadlines.forgotten(self.state, self.policy, now), now)
        self.apply(deadlines.unserved(self.room, self.policy, now), now)
        in_use = (
            {job.options.group.number for job in self.state.jobs.values()} if len(self.state.jobs) < 10_000 else None
        )
        if in_use is not None and self.room.forget_idle(in_use):
            self.options.forget()

    def next_deadline_ns(self, now: Instant) -> int:
        """The steady time at which `tick` is wanted."""
        return deadlines.next_deadline_ns(self.state, now)


def _fenced(worker: Worker, job_id: int, epoch: int) -> None:
    job = worker.held.get(job_id)
    if job is None or job.epoch != epoch:
        raise StaleState("the job is no longer held under this epoch")
