"""What one durable job costs: CPU in each process, bytes written, bytes that are kept.

`batch256`: in calls of 256; `single`: one by one, without waiting; `alone`: each after the other's result. What
the journal takes is a part of the broker's. The cost model in bench/README.md is made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench import processes
from empd.bench.daemon import Daemon, Where, noop_mapping
from empd.bench.figures import Figure, Plot, median_of
from empd.bench.running import Running, per_job_us
from empd.bench.scenario.backlog import settle
from empd.bench.scenario.cost_journal import journal_us
from empd.bench.scenario.latency import job_us
from empd.bench.scenario.throughput import Load
from empd.client import Client

KINDS = ("client", "broker", "worker", "web", "supervisor")
MODES = {"batch256": 256, "single": 1, "alone": 0}
PLOTS = (Plot("CPU of one durable job", "process", "mode", {"of": "cpu"}, log_y=True),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs in each run: in batches, one by one without waiting (`single`), and each after the other's result
    (`alone`)."""

    jobs: int = 200_000
    alone_jobs: int = 1000
    journal_jobs: int = 20_000
    runs: int = 5


QUICK = Size(jobs=30_000, alone_jobs=200, journal_jobs=5000, runs=2)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`cost.<mode>.<process>` in µs of CPU for each job, `.journal` of the broker's; `.written` in bytes (journal by
    the broker, history by the web process, sockets of stream type included); `cost.history`, bytes that a finished job
    keeps on disk."""
    with Daemon(noop_mapping(), where.place) as daemon, daemon.client() as client:
        first, *others = MODES
        yield from _mode(daemon, client, size, first)
        history = sum(path.stat().st_size for path in (daemon.state_dir / "state").glob("history.db*"))
        finished = _warm_up(size.jobs) + size.runs * size.jobs
        yield median_of("cost.history", "bytes", [history / finished], settings={"jobs": finished})
        for mode in others:
            yield from _mode(daemon, client, size, mode)
    # Whoever reads the journal holds its trimming back, so this is a daemon of its own.
    with Daemon(noop_mapping(), where.place) as daemon, daemon.client() as client:
        for mode, batch in MODES.items():
            jobs = min(size.journal_jobs, size.jobs) if batch else size.alone_jobs
            run = _runner(daemon, client, batch)
            run(_warm_up(jobs))
            samples = journal_us(daemon, where.place, run, jobs, size.runs)
            axes = {"process": "(journal)", "mode": mode, "of": "cpu"}
            yield median_of(f"cost.{mode}.journal", "µs", samples, axes=axes, settings={"jobs": jobs})


def _warm_up(jobs: int) -> int:
    return jobs // 5


def _runner(daemon: Running, client: Client, batch: int) -> Callable[[int], object]:
    """What does so many jobs; with a batch of 0 each after the other's result."""
    if batch:
        return Load(client, daemon.service, batch).run

    def alone(count: int) -> None:
        for _ in range(count):
            job_us(client, daemon.service, 100)

    return alone


def _mode(daemon: Running, client: Client, size: Size, mode: str) -> Iterator[Figure]:
    jobs = size.jobs if MODES[mode] else size.alone_jobs
    run = _runner(daemon, client, MODES[mode])
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
        axes = {"process": kind, "mode": mode, "of": "cpu" if kind != "supervisor" else "next to nothing"}
        yield median_of(f"cost.{mode}.{kind}", "µs", samples, axes=axes, settings=settings)
    total = [sum(parts) for parts in zip(*spent.values(), strict=True)]
    yield median_of(f"cost.{mode}.total", "µs", total, settings=settings)
    by_process = {f"{kind}_bytes": median(samples) for kind, samples in written.items()}
    both = [sum(parts) for parts in zip(*written.values(), strict=True)]
    yield median_of(f"cost.{mode}.written", "bytes", both, details=by_process, settings=settings)
