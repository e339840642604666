"""One durable job at a time, from submit to result, beside what it cannot do without.

A job waits for two commits (accepted, done) and travels client → broker → worker → broker → client, which is two
round trips through a Python ROUTER. Echo, commit and job take turns, so that all three meet the same machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median

import msgspec

from empd.bench.daemon import Daemon, noop_mapping
from empd.bench.figures import Figure, Target, percentile
from empd.bench.floors import Commit, Echo
from empd.client import Client

RESULT_TIMEOUT_S = 30.0
RATIO_TARGET = Target(1.0)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """`rounds` of one job, one echo and one commit each, in each of `runs`."""

    rounds: int = 1000
    runs: int = 5
    warm_up: int = 200
    payload_bytes: int = 100


QUICK = Size(rounds=200, runs=2, warm_up=50)


class Samples(msgspec.Struct):
    """Times of one run, in µs."""

    job: list[float] = []
    echo: list[float] = []
    commit: list[float] = []

    @property
    def floor(self) -> float:
        """2 × echo + 2 × commit, each at its median."""
        return 2 * median(self.echo) + 2 * median(self.commit)


def measure(size: Size, place: str) -> Iterator[Figure]:
    """`latency.fsync.p50`, `.p99` and the ratio of p50 to its floor."""
    runs: list[Samples] = []
    with Daemon(noop_mapping(), place) as daemon, daemon.client() as client, Echo() as echo, Commit(place) as commit:
        for _ in range(size.warm_up):
            job_us(client, "noop", size.payload_bytes)
        before = daemon.cpu_s()
        for _ in range(size.runs):
            samples = Samples()
            for _ in range(size.rounds):
                samples.echo.append(echo.round_trip_ns() / 1e3)
                samples.commit.append(commit.once_ns() / 1e3)
                samples.job.append(job_us(client, "noop", size.payload_bytes))
            runs.append(samples)
        after = daemon.cpu_s()
    jobs = size.runs * size.rounds
    # The bench's own share holds the echoes and commits too.
    spent = {f"{kind}_cpu_us_per_job": (after[kind] - before[kind]) * 1e6 / jobs for kind in after if kind != "client"}
    yield from _figures(runs, size, spent)


def job_us(client: Client, service: str, payload_bytes: int) -> float:
    """Submits one job and waits for its result; µs."""
    payload = os.urandom(payload_bytes)
    begun_ns = time.perf_counter_ns()
    client.submit(service, payload).result(RESULT_TIMEOUT_S)
    return (time.perf_counter_ns() - begun_ns) / 1e3


def _figures(runs: list[Samples], size: Size, spent: dict[str, float]) -> Iterator[Figure]:
    settings = {**msgspec.to_builtins(size), "durability": "fsync"}
    details = {
        "echo_p50_us": median([median(run.echo) for run in runs]),
        "commit_p50_us": median([median(run.commit) for run in runs]),
        "bound_us": median([run.floor for run in runs]),
        "bound": "2 × echo + 2 × commit = 1.0",
        **spent,
    }
    tables = {
        "latency.fsync.p50": ("µs", [median(run.job) for run in runs], None),
        "latency.fsync.p99": ("µs", [percentile(run.job, 99) for run in runs], None),
        "latency.fsync.p50_to_floor": ("ratio", [median(run.job) / run.floor for run in runs], RATIO_TARGET),
    }
    for name, (unit, samples, target) in tables.items():
        yield Figure(
            name=name,
            value=median(samples),
            unit=unit,
            samples=samples,
            target=target,
            details=details,
            settings=settings,
        )
