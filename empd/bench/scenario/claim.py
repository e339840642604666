"""The claim alone, on the pure queue in this process: beside a million other jobs, and beside none.

Two queues take turns. Each round submits ten jobs for the asker and times ten claims of one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench.daemon import Where
from empd.bench.figures import Figure, Plot, Target, median_of, percentile
from empd.clock import NS_PER_S, Instant
from empd.job import JobGroup, JobOptions, Submit
from empd.queue.machine import Queue
from empd.queue.policy import Policy, ServicePolicy, WorkerClass
from empd.queue.state import Offer
from empd.result import DoneJob
from empd.wire.frames import Done

TARGET = Target(2.0)
MINE = 10
FRAME_JOBS = 250
_NOW = Instant(NS_PER_S, 1_700_000_000 * NS_PER_S)
_POLICY = Policy(
    services={"mine": ServicePolicy(), "other": ServicePolicy()},
    classes=(WorkerClass(("mine", "other"), {}, open_ended=True),),
)


PLOTS = (Plot("A claim beside many, against beside ten", "waiting", "others", log_x=True),)
KINDS = ("own", "other_service", "limit_reached", "requirement_sets", "customers")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs waiting in the full queue, the asker's ten included; rounds in each run; how many sets of requirements,
    or customers, the others have."""

    waiting: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    rounds: int = 100
    runs: int = 5
    sets: int = 1000


QUICK = Size(waiting=(1000, 100_000), rounds=30, runs=3)


class Bench:
    """One queue, its one client and its one worker, who takes one job of `mine` at a time. `at_limit`: it takes one of
    `other` too, and runs it."""

    def __init__(self, at_limit: bool = False) -> None:
        self.queue = Queue(_POLICY)
        self.queue.start("boot", "bench", _NOW)
        self._session = self.queue.open_session(b"token", "bench", _NOW)
        self._frame = 0
        self._done = 0
        self._next_job = 1
        self.worker, _ = self.queue.hello("asker", 1, (), _NOW)
        self.held = int(at_limit)
        if not at_limit:
            self.queue.offer(self.worker, 1, {"mine": Offer(1)}, "")
            return
        self.queue.offer(self.worker, 2, {"mine": Offer(1), "other": Offer(1)}, "")
        self.submit(JobOptions(service="other"), 1)
        assert self.queue.claim(self.worker, _NOW) is not None
        self.queue.pending.clear()

    def submit(self, options: JobOptions, count: int) -> None:
        """One frame of jobs."""
        self._frame += 1
        frame = Submit(self._frame, self._next_job, [JobGroup(_raw(options), [bytes(100)] * count)])
        self._next_job += count
        answer = self.queue.submit(self._session, frame, b"", _NOW)
        assert not answer.refused, answer.refused
        self.queue.pending.clear()

    def round(self) -> list[int]:
        """Ten jobs for the asker, and the times of its claims, in ns."""
        self.submit(JobOptions(service="mine", priority=60), MINE)
        samples = []
        for _ in range(MINE):
            begun_ns = time.perf_counter_ns()
            claim = self.queue.claim(self.worker, _NOW)
            samples.append(time.perf_counter_ns() - begun_ns)
            assert claim is not None
            self._done += 1
            self.queue.done(self.worker, Done(self._done, [DoneJob(*_only(claim), b"")]), _NOW)
            self.queue.pending.clear()
        return samples


def _raw(options: JobOptions) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(options))


def _only(claim: Any) -> tuple[int, int]:
    [group] = claim.groups
    [job] = group.jobs
    return job.id, job.epoch


def others(kind: str, sets: int) -> list[JobOptions]:
    """Options of the jobs beside the asker's ten: `own` are its too, but come later; all else it cannot run, being of
    another service (one customer's, or `sets` customers'), of one that it offers and of which it runs as many as it may
    (these would come first), or of its own with requirements that it does not meet."""
    match kind:
        case "own":
            return [JobOptions(service="mine", priority=0)]
        case "other_service":
            return [JobOptions(service="other")]
        case "limit_reached":
            return [JobOptions(service="other", priority=100)]
        case "customers":
            return [JobOptions(service="other", customer_id=f"customer {number}") for number in range(sets)]
    return [JobOptions(service="mine", requirements={"memory_gb": need + 1}) for need in range(sets)]


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`claim.queue.<kind of the others>.<n>`: the median claim, as a ratio to the one in the empty queue."""
    for kind in KINDS:
        full, empty = (Bench(at_limit=kind == "limit_reached") for _ in range(2))
        kinds = others(kind, size.sets)
        waiting = MINE
        for total in size.waiting:
            for index, left in enumerate(range(total - waiting, 0, -FRAME_JOBS)):
                full.submit(kinds[index % len(kinds)], min(left, FRAME_JOBS))
            waiting = total
            # As the broker does: what waits is not looked at by every collection.
            gc.collect()
            gc.freeze()
            try:
                yield _figure(kind, total, (full, empty), size)
            finally:
                gc.unfreeze()


def _figure(kind: str, waiting: int, queues: tuple[Bench, Bench], size: Size) -> Figure:
    full, empty = queues
    many: list[list[int]] = []
    few: list[list[int]] = []
    for _ in range(size.runs):
        many.append([])
        few.append([])
        for _ in range(size.rounds):
            many[-1] += full.round()
            few[-1] += empty.round()
    ratios = [median(slow) / median(fast) for slow, fast in zip(many, few, strict=True)]
    details = {
        "p50_at_few_us": median([median(run) for run in few]) / 1e3,
        "p50_at_many_us": median([median(run) for run in many]) / 1e3,
        "p99_at_few_us": median([percentile(run, 99) for run in few]) / 1e3,
        "p99_at_many_us": median([percentile(run, 99) for run in many]) / 1e3,
        "other_jobs": len(full.queue.state.jobs) - full.held,
    }
    return median_of(
        f"claim.queue.{kind}.{waiting}",
        "ratio",
        ratios,
        target=TARGET,
        axes={"waiting": waiting, "others": kind},
        details=details,
        settings=msgspec.to_builtins(size),
    )
