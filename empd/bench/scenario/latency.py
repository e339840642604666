"""One job at a time, from submit to result, beside what it cannot do without.

`floor` is that: a durable job waits for two commits (accepted, done) and travels client → broker → worker → broker →
client, which is two round trips through a Python ROUTER, or one through the least broker. Echoes, commit and job take
turns, so that all meet the same machine.

Taking turns, each finds caches cold and what the one before left to be done (history is written then). So all are also
measured back to back, each in a row of its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench.daemon import Where, noop_mapping
from empd.bench.figures import Figure, Plot, Target, median_of, percentile
from empd.bench.floors import Commit, Echo
from empd.bench.running import per_job_us
from empd.client import Client

RESULT_TIMEOUT_S = 30.0
RATIO_TARGET = Target(1.0, cores=4)
COMMITS = {"fsync": 2, "memory": 0}
"""How many fsynced commits a job waits for. With `memory` its bound is two echoes alone."""

PLOTS = (Plot("One job at a time, beside what it cannot do without", "part", "row"),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, echoes and commits: `rounds` of each by turns and as many back to back, in each of `runs`."""

    rounds: int = 500
    runs: int = 5
    warm_up: int = 200
    payload_bytes: int = 100
    durabilities: tuple[str, ...] = ("fsync", "memory")


QUICK = Size(rounds=100, runs=3, warm_up=50)


class Samples(msgspec.Struct):
    """Times of one run, in µs."""

    echo: list[float] = []
    brokered: list[float] = []
    commit: list[float] = []
    job: list[float] = []

    @property
    def all(self) -> tuple[list[float], list[float], list[float], list[float]]:
        """Echo, brokered echo, commit, job."""
        return self.echo, self.brokered, self.commit, self.job

    def floor(self, commits: int) -> float:
        """2 × echo + the commits, each at its median."""
        return 2 * median(self.echo) + commits * median(self.commit)

    def brokered_floor(self, commits: int) -> float:
        """One brokered echo + the commits."""
        return median(self.brokered) + commits * median(self.commit)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`latency.<durability>.floor`, `.p50`, `.p99`, the ratios of p50 to its two floors; and the same back to back."""
    for durability in ("running",) if where.running else size.durabilities:
        yield from _measure(size, where, durability)


def _measure(size: Size, where: Where, durability: str) -> Iterator[Figure]:
    turns, rows = [], []
    with contextlib.ExitStack() as stack:
        echo, brokered = stack.enter_context(Echo()), stack.enter_context(Echo(brokered=True))
        commit = stack.enter_context(Commit(where.place))
        own = "fsync" if durability == "running" else durability
        daemon = stack.enter_context(where.daemon(noop_mapping(), durability=own))
        client = stack.enter_context(daemon.client())
        probes: tuple[Callable[[], float], ...] = (
            lambda: echo.round_trip_ns() / 1e3,
            lambda: brokered.round_trip_ns() / 1e3,
            lambda: commit.once_ns() / 1e3,
            lambda: job_us(client, daemon.service, size.payload_bytes),
        )
        for _ in range(size.warm_up):
            probes[-1]()
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
        spent = per_job_us(before, daemon.cpu_s(), 2 * size.runs * size.rounds)
    # The bench's own share holds the echoes and commits too.
    spent.pop("client_cpu_us_per_job")
    bound = RATIO_TARGET if durability in COMMITS else None  # a running daemon may have any durability
    yield from _figures(f"latency.{durability}", turns, bound, {"rounds": size.rounds})
    for figure in _figures(f"latency.{durability}.back_to_back", rows, None, {"rounds": size.rounds}):
        yield msgspec.structs.replace(figure, details={**figure.details, **spent})


def job_us(client: Client, service: str, payload_bytes: int) -> float:
    """Submits one job and waits for its result; µs."""
    payload = os.urandom(payload_bytes)
    begun_ns = time.perf_counter_ns()
    client.submit(service, payload).result(RESULT_TIMEOUT_S)
    return (time.perf_counter_ns() - begun_ns) / 1e3


def _figures(name: str, runs: list[Samples], ratio_target: Target | None, settings: dict[str, Any]) -> Iterator[Figure]:
    commits = COMMITS.get(name.split(".")[1], 2)
    plus = f" + {commits} × commit" if commits else ""
    floor = [run.floor(commits) for run in runs]
    details = {
        "echo_p50_us": median([median(run.echo) for run in runs]),
        "brokered_echo_p50_us": median([median(run.brokered) for run in runs]),
        "commit_p50_us": median([median(run.commit) for run in runs]),
        "floor_us": median(floor),
        "brokered_floor_us": median([run.brokered_floor(commits) for run in runs]),
        "floors": f"2 × echo{plus}; brokered echo{plus}",
    }
    p50 = [median(run.job) for run in runs]
    to_floor = [job / least for job, least in zip(p50, floor, strict=True)]
    to_brokered = [job / run.brokered_floor(commits) for job, run in zip(p50, runs, strict=True)]
    row = name.removeprefix("latency.").replace(".back_to_back", ", back to back")
    yield median_of(f"{name}.floor", "µs", floor, axes={"part": "floor", "row": row}, settings=settings)
    yield median_of(f"{name}.p50", "µs", p50, axes={"part": "p50", "row": row}, details=details, settings=settings)
    p99 = [percentile(run.job, 99) for run in runs]
    yield median_of(f"{name}.p99", "µs", p99, axes={"part": "p99", "row": row}, details=details, settings=settings)
    yield median_of(f"{name}.p50_to_floor", "ratio", to_floor, target=ratio_target, details=details, settings=settings)
    yield median_of(f"{name}.p50_to_brokered_floor", "ratio", to_brokered, details=details, settings=settings)
