"""One durable job at a time, from submit to result, beside what it cannot do without.

A job waits for two commits (accepted, done) and travels client → broker → worker → broker → client, which is two
round trips through a Python ROUTER. Echo, commit and job take turns, so that all three meet the same machine.

Taking turns, each finds caches cold and what the one before left to be done (history is written then). So all three
are also measured back to back, each in a row of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench.daemon import Daemon, noop_mapping
from empd.bench.figures import Figure, Target, median_of, percentile
from empd.bench.floors import Commit, Echo
from empd.client import Client

RESULT_TIMEOUT_S = 30.0
RATIO_TARGET = Target(1.0)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, echoes and commits, `rounds` of each by turns and as many back to back, in each of `runs`."""

    rounds: int = 1000
    runs: int = 5
    warm_up: int = 200
    payload_bytes: int = 100


QUICK = Size(rounds=200, runs=2, warm_up=50)


class Samples(msgspec.Struct):
    """Times of one run, in µs."""

    echo: list[float] = []
    commit: list[float] = []
    job: list[float] = []

    @property
    def all(self) -> tuple[list[float], list[float], list[float]]:
        """Echo, commit, job."""
        return self.echo, self.commit, self.job

    @property
    def floor(self) -> float:
        """2 × echo + 2 × commit, each at its median."""
        return 2 * median(self.echo) + 2 * median(self.commit)


def measure(size: Size, place: str) -> Iterator[Figure]:
    """`latency.fsync.p50`, `.p99` and the ratio of p50 to its floor; and the same back to back."""
    turns: list[Samples] = []
    rows: list[Samples] = []
    with Daemon(noop_mapping(), place) as daemon, daemon.client() as client, Echo() as echo, Commit(place) as commit:
        for _ in range(size.warm_up):
            job_us(client, "noop", size.payload_bytes)

        def echo_us() -> float:
            return echo.round_trip_ns() / 1e3

        def commit_us() -> float:
            return commit.once_ns() / 1e3

        def one_job_us() -> float:
            return job_us(client, "noop", size.payload_bytes)

        probes = (echo_us, commit_us, one_job_us)
        before = daemon.cpu_s()
        for _ in range(size.runs):
            by_turns, in_rows = Samples(), Samples()
            for _ in range(size.rounds):
                for samples, probe in zip(by_turns.all, probes, strict=True):
                    samples.append(probe())
            for samples, probe in zip(in_rows.all, probes, strict=True):
                samples.extend(probe() for _ in range(size.rounds))
            turns.append(by_turns)
            rows.append(in_rows)
        after = daemon.cpu_s()
    jobs = 2 * size.runs * size.rounds
    # The bench's own share holds the echoes and commits too.
    spent = {f"{kind}_cpu_us_per_job": (after[kind] - before[kind]) * 1e6 / jobs for kind in after if kind != "client"}
    settings = {**msgspec.to_builtins(size), "durability": "fsync"}
    yield from _figures("latency.fsync", turns, settings, RATIO_TARGET)
    for figure in _figures("latency.fsync.back_to_back", rows, settings, None):
        yield msgspec.structs.replace(figure, details={**figure.details, **spent})


def job_us(client: Client, service: str, payload_bytes: int) -> float:
    """Submits one job and waits for its result; µs."""
    payload = os.urandom(payload_bytes)
    begun_ns = time.perf_counter_ns()
    client.submit(service, payload).result(RESULT_TIMEOUT_S)
    return (time.perf_counter_ns() - begun_ns) / 1e3


def _figures(name: str, runs: list[Samples], settings: dict[str, Any], ratio_target: Target | None) -> Iterator[Figure]:
    details = {
        "echo_p50_us": median([median(run.echo) for run in runs]),
        "commit_p50_us": median([median(run.commit) for run in runs]),
        "floor_us": median([run.floor for run in runs]),
        "floor": "2 × echo + 2 × commit; the bound is 1.0",
    }
    table = (
        ("p50", "µs", [median(run.job) for run in runs], None),
        ("p99", "µs", [percentile(run.job, 99) for run in runs], None),
        ("p50_to_floor", "ratio", [median(run.job) / run.floor for run in runs], ratio_target),
    )
    for suffix, unit, samples, target in table:
        yield median_of(f"{name}.{suffix}", unit, samples, target=target, details=details, settings=settings)
