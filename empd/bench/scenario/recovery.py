"""kill -9 of a worker in mid-job, to the first claim of its replacement.

Several workers, each alone with a service of its own, are killed by turns: so each has been healthy long enough for
its restart budget to be reset, without the bench waiting that long for every kill.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from statistics import median

import msgspec

from empd.bench.assignments import Assignment, Assignments
from empd.bench.daemon import Daemon, Where, mapping_of
from empd.bench.figures import Figure, Plot, Target, median_of, percentile
from empd.bench.running import BenchError, wait_until
from empd.client import Client
from empd.supervisor.restart import Policy

TARGET, TARGET_P99 = Target(80.0, cores=4), Target(200.0, cores=4)
HEALTHY_S = Policy().healthy_s + 0.5
"""Ready for this long, a worker has its whole restart budget again."""

LIMIT_S = 60.0
PLOTS = (Plot("kill -9 of a worker to the next claim of its job", "killed", of_samples=True),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Kills in all, spread over so many workers."""

    kills: int = 100
    workers: int = 20


QUICK = Size(kills=8, workers=8)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`recovery.worker` and its p99, in ms."""
    services = {f"sleep{index}": {"api_config": {"duration_s": 3600}} for index in range(size.workers)}
    with (
        Daemon(mapping_of(services, instances=1), where.place) as daemon,
        daemon.client() as client,
        Assignments(daemon) as assignments,
    ):
        ready_s = dict.fromkeys(services, time.monotonic())
        rounds: list[tuple[float, float]] = []
        for index in range(size.kills):
            service = list(services)[index % size.workers]
            healthy_s = ready_s[service] + HEALTHY_S
            wait_until(lambda at_s=healthy_s: time.monotonic() >= at_s, "the restart budget")  # type: ignore[misc]
            rounds.append(_kill_once(daemon, client, assignments, service))
            ready_s[service] = time.monotonic()
    claimed_ms = [claimed for claimed, _ in rounds]
    details = {"seen_by_a_subscriber_p50_ms": median([seen for _, seen in rounds])}
    settings = {**msgspec.to_builtins(size), "healthy_s": HEALTHY_S, "durability": "fsync"}
    axes = {"killed": "a worker", "share": 50}
    yield median_of("recovery.worker", "ms", claimed_ms, target=TARGET, axes=axes, details=details, settings=settings)
    yield Figure(
        name="recovery.worker.p99",
        value=percentile(claimed_ms, 99),
        unit="ms",
        samples=claimed_ms,
        statistic="p99",
        target=TARGET_P99,
        axes={**axes, "share": 99},
        settings=settings,
    )


def _kill_once(daemon: Daemon, client: Client, assignments: Assignments, service: str) -> tuple[float, float]:
    """Kills the holder of a running job; ms until the job is claimed again, and until that was heard of here."""
    job = client.submit(service, None)

    def of_this(assignment: Assignment) -> bool:
        return job.number in assignment.ids

    first = assignments.next(of_this, f"a claim of {service}", LIMIT_S)
    victim = daemon.child(first.worker)
    killed_ns = time.time_ns()
    os.kill(victim.pid, signal.SIGKILL)
    again = assignments.next(of_this, f"{first.worker} to be replaced", LIMIT_S)
    if again.generation <= first.generation:
        raise BenchError(f"{again.worker} was killed and yet claims as generation {again.generation}")
    job.cancel()
    job.exception(LIMIT_S)
    return (again.at_ns - killed_ns) / 1e6, (again.seen_ns - killed_ns) / 1e6
