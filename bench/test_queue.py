"""What the queue costs per job: admission, claim and completion, from decoded frames to journaled facts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from empd.clock import NS_PER_S, Instant
from empd.job import JobGroup, JobOptions, Submit
from empd.queue.carry import carry
from empd.queue.machine import Queue
from empd.queue.policy import Policy, ServicePolicy, WorkerClass
from empd.queue.rows import Fact, Kind, decode_body
from empd.queue.state import Offer, Worker
from empd.result import DoneJob
from empd.wire.frames import Done

JOBS = 256
CREDIT = 512
NOW = Instant(NS_PER_S, 1_700_000_000 * NS_PER_S)
POLICY = Policy(services={"noop": ServicePolicy()}, classes=(WorkerClass(("noop",), {}),))
PLAIN = JobOptions(service="noop")
RANKED = JobOptions(service="noop", priority=90, customer_id="c", labels={"a": "b"}, timeout_s=60.0)


class Box:
    """A queue with one client and one worker."""

    def __init__(self) -> None:
        self.queue = Queue(POLICY)
        self.queue.start("boot", "bench", NOW)
        self.session = self.queue.open_session(b"token", "bench", NOW)
        self.worker: Worker = self.queue.hello("w", 1, (), NOW)[0]
        self.queue.offer(self.worker, CREDIT, {"noop": Offer(CREDIT)}, "")
        self.frames = 0
        self.dones = 0
        self.next_job = 1

    def frame(self, options: JobOptions = PLAIN, count: int = JOBS) -> tuple[Submit, bytes]:
        """The next Submit frame, decoded and as it came."""
        self.frames += 1
        raw = msgspec.Raw(msgspec.msgpack.encode(options))
        frame = Submit(self.frames, self.next_job, [JobGroup(raw, [bytes(100)] * count)])
        self.next_job += count
        return frame, msgspec.msgpack.encode(frame)

    def submit(self, frame: Submit, data: bytes) -> None:
        answer = self.queue.submit(self.session, frame, data, NOW)
        assert not answer.refused

    def claim(self) -> list[tuple[int, int]]:
        claim = self.queue.claim(self.worker, NOW)
        assert claim is not None
        return [(job.id, job.epoch) for group in claim.groups for job in group.jobs]

    def done(self, jobs: list[tuple[int, int]]) -> None:
        self.dones += 1
        self.queue.done(self.worker, Done(self.dones, [DoneJob(*job, b"\x01") for job in jobs]), NOW)

    def committed(self) -> list[tuple[int, int, Fact]]:
        """What the journal would have got since the last time."""
        pending = list(self.queue.pending)
        self.queue.pending.clear()
        return pending


@pytest.mark.parametrize("options", [PLAIN, RANKED], ids=["plain", "ranked"])
def test_submit_256(benchmark: Any, options: JobOptions) -> None:
    box = Box()

    def ready() -> tuple[tuple[Any, ...], dict[str, Any]]:
        while box.queue.state.jobs:
            box.done(box.claim())
        box.committed()
        return box.frame(options), {}

    benchmark.pedantic(box.submit, setup=ready, rounds=300)
    assert len(box.queue.state.jobs) == JOBS


def test_claim_256(benchmark: Any) -> None:
    box = Box()

    def ready() -> None:
        if box.worker.held:
            box.done([(job.id, job.epoch) for job in box.worker.held.values()])
        box.submit(*box.frame())
        box.committed()

    taken = benchmark.pedantic(box.claim, setup=ready, rounds=300)
    assert len(taken) == JOBS


def test_done_256(benchmark: Any) -> None:
    box = Box()

    def ready() -> tuple[tuple[Any, ...], dict[str, Any]]:
        box.submit(*box.frame())
        jobs = box.claim()
        box.committed()
        return (jobs,), {}

    benchmark.pedantic(box.done, setup=ready, rounds=300)
    assert not box.queue.state.jobs


def test_whole_life_of_one_job(benchmark: Any) -> None:
    box = Box()

    def live() -> None:
        box.submit(*box.frame(count=1))
        box.done(box.claim())
        box.committed()

    benchmark(live)
    assert not box.queue.state.jobs


def test_idle_tick(benchmark: Any) -> None:
    box = Box()
    for _ in range(40):
        box.submit(*box.frame())

    assert benchmark(box.queue.tick, NOW) == []


@pytest.mark.parametrize("waiting", [1_000, 100_000])
def test_claim_of_one_beside(benchmark: Any, waiting: int) -> None:
    """The claim must not depend on how many wait."""
    box = Box()
    box.queue.offer(box.worker, 1, {"noop": Offer(1)}, "")
    for _ in range(waiting // JOBS):
        box.submit(*box.frame())

    def ready() -> None:
        if box.worker.held:
            box.done([(job.id, job.epoch) for job in box.worker.held.values()])
        box.committed()

    assert len(benchmark.pedantic(box.claim, setup=ready, rounds=500)) == 1


def test_replay_10_000_waiting_jobs(benchmark: Any) -> None:
    box = Box()
    for _ in range(40):
        box.submit(*box.frame())
    journal = [(seq, at_ns, int(f.kind), f.origin, f.encoded()) for seq, at_ns, f in box.committed()]

    def replay() -> Queue:
        queue = Queue(POLICY)
        queue.state.seq = journal[0][0] - 1
        for seq, at_ns, kind, origin, body in journal:
            queue.replay(seq, at_ns, Fact(Kind(kind), decode_body(kind, body), origin))
        return queue

    assert len(benchmark(replay).state.jobs) == 40 * JOBS


def test_carry_10_000_waiting_jobs(benchmark: Any) -> None:
    box = Box()
    for _ in range(40):
        box.submit(*box.frame())
    last_seq = box.queue.state.seq

    facts = benchmark(lambda: carry(box.queue.state, last_seq, NOW.wall_ns))
    assert all(fact.encoded() for fact in facts)
    assert facts
