"""Jobs per second: one client process, every result delivered to its handle, settings as shipped.

A run begins with the first submit and ends when the last job's handle has its result; that all of them completed is
checked afterwards. Nothing is waited for between runs, so that what the daemon puts off (history) is paid for.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from itertools import groupby, product
from typing import Any, NamedTuple

import msgspec

from empd.bench.daemon import Where, noop_mapping
from empd.bench.figures import Figure, Plot, Target, median_of
from empd.bench.running import BenchError, Running, per_job_us
from empd.client import Client, JobHandle

RUN_TIMEOUT_S = 300.0
DURABILITIES = ("fsync", "os", "memory")
_PAYLOADS = 256


class Point(NamedTuple):
    """One combination of what can be varied. `batch` is how many payloads a call of `submit_many` has; 1: `submit`.
    An empty `durability` is the one that a running daemon has, no `workers` are those that it has."""

    durability: str = "fsync"
    workers: int = 2
    batch: int = 256
    payload_bytes: int = 100

    @property
    def name(self) -> str:
        """`throughput.<durability>.batch<n>`, and what else is not as usual."""
        parts = ["throughput", self.durability or "running", f"batch{self.batch}"]
        parts += [f"workers{self.workers}"] if self.workers not in (0, Point().workers) else []
        parts += [f"payload{self.payload_bytes}"] if self.payload_bytes != Point().payload_bytes else []
        return ".".join(parts)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured: jobs in a run, when the payloads stay within `bytes_max`. Each axis is varied while the
    others are as usual; `matrix`: all combinations."""

    jobs: int = 300_000
    bytes_max: int = 512 << 20
    runs: int = 5
    warm_up_jobs: int = 20_000
    durabilities: tuple[str, ...] = DURABILITIES
    batches: tuple[int, ...] = (1, 16, 256)
    workers: tuple[int, ...] = (1, 2, 4)
    payloads: tuple[int, ...] = (100, 4096, 64 * 1024)
    matrix: bool = False
    credit: int = 512
    window: int = 20_000


QUICK = Size(jobs=30_000, bytes_max=64 << 20, runs=2, warm_up_jobs=5000)
TARGETS = {
    Point("fsync", batch=256): Target(120_000, at_least=True, cores=4),
    Point("fsync", batch=1): Target(35_000, at_least=True, cores=4),
    Point("memory", batch=256): Target(200_000, at_least=True, cores=4),
}
PLOTS = (
    Plot("Throughput by durability and batch", "batch", "durability", {"workers": 2, "payload_bytes": 100}, log_x=True),
    Plot("Throughput by workers", "workers", "durability", {"batch": 256, "payload_bytes": 100}),
    Plot("Throughput by payload", "payload_bytes", "durability", {"batch": 256, "workers": 2}, log_x=True, log_y=True),
)


def points(size: Size, running: bool = False) -> list[Point]:
    """What is measured, those of one daemon together."""
    durabilities, workers = (("",), (0,)) if running else (size.durabilities, size.workers)
    every = [Point(*one) for one in product(durabilities, workers, size.batches, size.payloads)]
    if size.matrix:
        return every
    usual = Point(durabilities[0], 2 if 2 in workers else workers[0], max(size.batches), size.payloads[0])

    def is_wanted(one: Point) -> bool:
        varied = sum(mine != theirs for mine, theirs in zip(one, usual, strict=True))
        by_batch = one[1] == usual[1] and one[3] == usual[3]  # each durability with each batch
        return varied <= 1 or by_batch

    return [one for one in every if is_wanted(one)]


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`throughput.<durability>.batch<n>`, in jobs/s, with what differs from the usual behind it."""
    for (durability, workers), group in groupby(points(size, where.running is not None), lambda one: one[:2]):
        mapping = noop_mapping(workers or 1, size.credit)
        with where.daemon(mapping, durability=durability or "fsync") as daemon:
            for point in group:
                yield _figure(size, daemon, point)


def _figure(size: Size, daemon: Running, point: Point) -> Figure:
    jobs = max(_PAYLOADS, min(size.jobs, size.bytes_max // point.payload_bytes))
    rates: list[float] = []
    spent: dict[str, list[float]] = {}
    with daemon.client(window=size.window) as client:
        load = Load(client, daemon.service, point.batch, point.payload_bytes)
        load.run(min(size.warm_up_jobs, jobs))
        commits = client.status()["journal"]["commits"]
        for _ in range(size.runs):
            before = daemon.cpu_s()
            rates.append(load.run(jobs))
            for name, used_us in per_job_us(before, daemon.cpu_s(), jobs).items():
                spent.setdefault(name, []).append(used_us)
        commits = client.status()["journal"]["commits"] - commits
    details: dict[str, Any] = {name: statistics.median(samples) for name, samples in spent.items()}
    details |= {"jobs_per_run": jobs, "jobs_per_commit": size.runs * jobs / max(commits, 1)}
    return median_of(
        point.name,
        "jobs/s",
        rates,
        target=TARGETS.get(point),
        axes=point._asdict(),
        details=details,
        settings={"credit": size.credit, "window": size.window},
    )


class Load:
    """Jobs for a service that does nothing, in calls of `batch` payloads."""

    def __init__(self, client: Client, service: str, batch: int = 256, payload_bytes: int = 100) -> None:
        self._client = client
        self._service = service
        self._batch = batch
        # Twice, so that a batch may begin at any of them.
        self._payloads = 2 * [os.urandom(payload_bytes) for _ in range(_PAYLOADS)]

    def run(self, count: int) -> float:
        """Submits `count` jobs and waits for all; jobs/s. Raises BenchError unless every one completed."""
        begun_s = time.perf_counter()
        handles = self._one_by_one(count) if self._batch == 1 else self._in_batches(count)
        took_s = time.perf_counter() - begun_s
        unfinished = sum(handle.state != "completed" for handle in handles)
        if unfinished:
            raise BenchError(f"{unfinished} of {count} jobs did not complete, one being {handles[-1]!r}")
        return count / took_s

    def _in_batches(self, count: int) -> list[JobHandle]:
        client, service, payloads, batch = self._client, self._service, self._payloads, self._batch
        sets = []
        for start in range(0, count, batch):
            first = start % _PAYLOADS
            sets.append(client.submit_many(service, payloads[first : first + min(batch, count - start)]))
        for jobs in sets:
            deque(jobs.as_completed(RUN_TIMEOUT_S), maxlen=0)
        return [handle for jobs in sets for handle in jobs]

    def _one_by_one(self, count: int) -> list[JobHandle]:
        submit, service, payloads = self._client.submit, self._service, self._payloads
        handles = [submit(service, payloads[i % _PAYLOADS]) for i in range(count)]
        for handle in handles:
            handle.exception(RUN_TIMEOUT_S)
        return handles
