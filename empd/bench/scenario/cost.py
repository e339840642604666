"""What one job costs: CPU in each process, bytes written, bytes while it waits. The cost model in bench/README.md is
made of these."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench import processes
from empd.bench.daemon import Daemon, Where, noop_mapping
from empd.bench.figures import Figure, Plot, median_of
from empd.bench.running import Running, per_job_us
from empd.bench.scenario.backlog import settle
from empd.bench.scenario.latency import job_us
from empd.bench.scenario.throughput import Load
from empd.client import Client

KINDS = ("client", "broker", "worker", "web", "supervisor")
PLOTS = (Plot("CPU of one durable job", "process", "mode", {"of": "cpu"}, log_y=True),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs in each run: in batches, one by one without waiting (`single`), and each after the other's result
    (`alone`)."""

    jobs: int = 200_000
    alone_jobs: int = 1000
    runs: int = 5


QUICK = Size(jobs=30_000, alone_jobs=200, runs=2)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`cost.<mode>.<process>` in µs of CPU for each job, `cost.<mode>.written` in bytes (journal by the broker, history
    by the web process, sockets of stream type included); `cost.history`, bytes that a finished job keeps on disk."""
    with Daemon(noop_mapping(), where.place) as daemon, daemon.client() as client:
        modes = {"batch256": 256, "single": 1, "alone": 0}
        yield from _mode(daemon, client, size, "batch256", modes.pop("batch256"))
        history = sum(path.stat().st_size for path in (daemon.state_dir / "state").glob("history.db*"))
        finished = _warm_up(size.jobs) + size.runs * size.jobs
        yield median_of("cost.history", "bytes", [history / finished], settings={"jobs": finished})
        for mode, batch in modes.items():
            yield from _mode(daemon, client, size, mode, batch)


def _warm_up(jobs: int) -> int:
    return jobs // 5


def _mode(daemon: Running, client: Client, size: Size, mode: str, batch: int) -> Iterator[Figure]:
    jobs = size.jobs if batch else size.alone_jobs
    load = Load(client, daemon.service, batch or 1)

    def run(count: int) -> None:
        if batch:
            load.run(count)
        else:
            for _ in range(count):
                job_us(client, daemon.service, 100)

    run(_warm_up(jobs))
    settle(daemon)
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    written: dict[str, list[float]] = {"broker": [], "web": []}
    pids = {kind: daemon.pids()[kind][0] for kind in written}
    for _ in range(size.runs):
        before = daemon.cpu_s()
        wrote = {kind: processes.written_bytes(pid) for kind, pid in pids.items()}
        run(jobs)
        settle(daemon)  # what was put off belongs to these jobs
        used = per_job_us(before, daemon.cpu_s(), jobs)
        for kind, samples in spent.items():
            samples.append(used[f"{kind}_cpu_us_per_job"])
        for kind, pid in pids.items():
            written[kind].append((processes.written_bytes(pid) - wrote[kind]) / jobs)
    settings: dict[str, Any] = {"jobs": jobs, "runs": size.runs, "durability": "fsync", "workers": 2}
    for kind, samples in spent.items():
        axes = {"process": kind, "mode": mode, "of": "cpu"}
        yield median_of(f"cost.{mode}.{kind}", "µs", samples, axes=axes, settings=settings)
    total = [sum(parts) for parts in zip(*spent.values(), strict=True)]
    yield median_of(f"cost.{mode}.total", "µs", total, settings=settings)
    by_process = {f"{kind}_bytes": median(samples) for kind, samples in written.items()}
    both = [sum(parts) for parts in zip(*written.values(), strict=True)]
    yield median_of(f"cost.{mode}.written", "bytes", both, details=by_process, settings=settings)
