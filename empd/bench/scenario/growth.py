"""What grows, and how fast: slopes that should be flat, or as low as they can be.

load      CPU of all processes for each job, over the share of capacity (batches grow with the load: it falls)
workers   CPU of the broker for each job, over the number of workers
backlog   the time of one job, over the decades of jobs that wait
memory    bytes of the whole daemon for each job that it has finished, when the queue has drained
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench.daemon import Daemon, Where, mapping_of, noop_mapping
from empd.bench.figures import Figure, Plot, median_of, slope
from empd.bench.running import per_job_us
from empd.bench.scenario.backlog import NO_OP, fill, settle
from empd.bench.scenario.latency import job_us
from empd.bench.scenario.load import OpenLoop
from empd.bench.scenario.throughput import Load

PLOTS = (
    Plot("CPU of the daemon for each job, over the load", "jobs_per_s", log_x=True),
    Plot("CPU of the broker for each job, over the workers", "workers"),
    Plot("One job, over the jobs that wait", "waiting", log_x=True),
    Plot("Memory of the daemon, over the jobs it has finished", "finished"),
)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Points of each slope, and how much is done at each, in each of `runs`."""

    rates: tuple[int, ...] = (300, 3000, 15_000)
    seconds: float = 3.0
    workers: tuple[int, ...] = (1, 2, 4, 8)
    jobs: int = 100_000
    waiting: tuple[int, ...] = (1000, 10_000, 100_000)
    timed_jobs: int = 300
    rounds: int = 6
    runs: int = 3


QUICK = Size(
    rates=(300, 3000),
    seconds=1.0,
    workers=(1, 2, 4),
    jobs=15_000,
    waiting=(1000, 20_000),
    timed_jobs=50,
    rounds=4,
    runs=2,
)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`growth.<what>.<point>` and `growth.<what>.slope`, for each of the four."""
    settings = msgspec.to_builtins(size)
    yield from _slope("load", "µs per decade", _load(size, where), settings)
    yield from _slope("workers", "µs per worker", _workers(size, where), settings)
    yield from _slope("backlog", "µs per decade", _backlog(size, where), settings)
    yield from _slope("memory", "bytes per job", _memory(size, where), settings)


def _slope(what: str, unit: str, points: Iterator[Figure], settings: dict[str, Any]) -> Iterator[Figure]:
    seen: list[tuple[float, float]] = []
    for figure in points:
        [x] = figure.axes.values()
        seen.append((math.log10(x) if unit.endswith("decade") else x, figure.value))
        yield msgspec.structs.replace(figure, settings=settings)
    factor = 1 << 20 if what == "memory" else 1
    grown = slope(seen) * factor
    yield Figure(name=f"growth.{what}.slope", value=grown, unit=unit, samples=[grown], settings=settings)


def _load(size: Size, where: Where) -> Iterator[Figure]:
    with Daemon(noop_mapping(), where.place) as daemon, daemon.client() as client:
        loop = OpenLoop(client, "noop", 100, seed=1)
        for rate in size.rates:
            samples = []
            count = int(rate * size.seconds)
            for _ in range(size.runs):
                before = daemon.cpu_s()
                loop.run(count, rate)
                used = per_job_us(before, daemon.cpu_s(), count)
                used.pop("client_cpu_us_per_job")  # it polls while it waits
                samples.append(sum(used.values()))
            yield median_of(f"growth.load.{rate}", "µs", samples, axes={"jobs_per_s": rate})


def _workers(size: Size, where: Where) -> Iterator[Figure]:
    for workers in size.workers:
        with Daemon(noop_mapping(workers), where.place) as daemon, daemon.client() as client:
            load = Load(client, "noop")
            load.run(size.jobs // 5)
            samples = []
            for _ in range(size.runs):
                before = daemon.cpu_s()
                load.run(size.jobs)
                samples.append(per_job_us(before, daemon.cpu_s(), size.jobs)["broker_cpu_us_per_job"])
        yield median_of(f"growth.workers.{workers}", "µs", samples, axes={"workers": workers})


def _backlog(size: Size, where: Where) -> Iterator[Figure]:
    mapping = mapping_of({"parked": NO_OP, "noop": NO_OP}, instances=1)
    with Daemon(mapping, where.place) as daemon, daemon.client() as client:
        client.operate("drain", [worker["name"] for worker in client.status()["workers"] if worker["type"] == "parked"])
        before = 0
        for waiting in size.waiting:
            fill(daemon, waiting - before, 100)
            before = waiting
            settle(daemon)
            runs = [median(job_us(client, "noop", 100) for _ in range(size.timed_jobs)) for _ in range(size.runs)]
            yield median_of(f"growth.backlog.{waiting}", "µs", runs, axes={"waiting": waiting})


def _memory(size: Size, where: Where) -> Iterator[Figure]:
    with Daemon(noop_mapping(), where.place) as daemon, daemon.client() as client:
        load = Load(client, "noop")
        load.run(size.jobs)  # what is made once and kept is there from now on
        for done in range(1, size.rounds + 1):
            load.run(size.jobs)
            settle(daemon)
            held = {f"{kind}_mib": used / (1 << 20) for kind, used in daemon.pss_bytes().items()}
            axes = {"finished": done * size.jobs}
            yield median_of(f"growth.memory.{done}", "MiB", [sum(held.values())], axes=axes, details=held)
