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
from typing import Any

import msgspec

from empd.bench.daemon import BenchError, Daemon, noop_mapping
from empd.bench.figures import Figure, Target, median_of
from empd.client import Client, JobHandle

RUN_TIMEOUT_S = 300.0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. `durabilities` are run in this order; targets are for the first, fsync."""

    jobs: int = 300_000
    single_jobs: int = 300_000
    runs: int = 5
    warm_up_jobs: int = 30_000
    durabilities: tuple[str, ...] = ("fsync", "os", "memory")
    modes: tuple[str, ...] = ("batch256", "single")
    payload_bytes: int = 100
    workers: int = 2
    credit: int = 512
    window: int = 20_000


QUICK = Size(jobs=100_000, single_jobs=50_000, runs=2, durabilities=("fsync",))
TARGETS = {("fsync", "batch256"): Target(100_000, at_least=True)}


def measure(size: Size, place: str) -> Iterator[Figure]:
    """`throughput.<durability>.<mode>`, in jobs/s."""
    for durability in size.durabilities:
        for mode in size.modes:
            yield _figure(size, place, durability, mode)


def _figure(size: Size, place: str, durability: str, mode: str) -> Figure:
    jobs = size.jobs if mode == "batch256" else size.single_jobs
    rates: list[float] = []
    spent: dict[str, list[float]] = {}
    mapping = noop_mapping(size.workers, size.credit)
    with Daemon(mapping, place, durability=durability) as daemon, daemon.client(window=size.window) as client:
        run_once(client, mode, size.warm_up_jobs, size.payload_bytes)
        for _ in range(size.runs):
            before = daemon.cpu_s()
            rates.append(run_once(client, mode, jobs, size.payload_bytes))
            after = daemon.cpu_s()
            for kind, used_s in after.items():
                spent.setdefault(kind, []).append((used_s - before.get(kind, 0.0)) * 1e6 / jobs)
        journal = client.status()["journal"]
    cpu_us = {f"{kind}_cpu_us_per_job": statistics.median(samples) for kind, samples in spent.items()}
    details: dict[str, Any] = {**cpu_us, "jobs_per_run": jobs, "journal_commits": journal["commits"]}
    settings = {**msgspec.to_builtins(size), "durability": durability, "mode": mode}
    return median_of(
        f"throughput.{durability}.{mode}",
        "jobs/s",
        rates,
        target=TARGETS.get((durability, mode)),
        details=details,
        settings=settings,
    )


def run_once(client: Client, mode: str, count: int, payload_bytes: int) -> float:
    """Submits `count` jobs and waits for all; jobs/s. Raises BenchError unless every one completed."""
    payloads = [os.urandom(payload_bytes) for _ in range(256)]
    begun_s = time.perf_counter()
    handles = _in_batches(client, payloads, count) if mode == "batch256" else _one_by_one(client, payloads, count)
    took_s = time.perf_counter() - begun_s
    unfinished = sum(handle.state != "completed" for handle in handles)
    if unfinished:
        raise BenchError(f"{unfinished} of {count} jobs did not complete, one being {handles[-1]!r}")
    return count / took_s


def _in_batches(client: Client, payloads: list[bytes], count: int) -> list[JobHandle]:
    jobs = client.submit_many("noop", (payloads[i & 255] for i in range(count)))
    deque(jobs.as_completed(RUN_TIMEOUT_S), maxlen=0)
    return list(jobs)


def _one_by_one(client: Client, payloads: list[bytes], count: int) -> list[JobHandle]:
    submit = client.submit
    handles = [submit("noop", payloads[i & 255]) for i in range(count)]
    for handle in handles:
        handle.exception(RUN_TIMEOUT_S)
    return handles
