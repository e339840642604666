"""kill -9 of the broker with a backlog, to the next assignment by its successor.

The workers live on and finish what they hold; the successor replays the journal, settles with them, and assigns.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import msgspec

from empd.bench.assignments import Assignments
from empd.bench.daemon import Daemon, Where, mapping_of
from empd.bench.figures import Figure, Plot, Target, median_of
from empd.bench.running import rest
from empd.bench.scenario.recovery import HEALTHY_S, LIMIT_S

TARGETS = {100_000: Target(1000.0, cores=4), 1_000_000: Target(10_000.0, cores=4)}
PLOTS = (Plot("kill -9 of the broker to the next claim", "waiting", log_x=True, log_y=True),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """(jobs waiting, a few more at the first kill; how often the broker is killed then); what each job takes."""

    kills: tuple[tuple[int, int], ...] = ((100_000, 7), (1_000_000, 3))
    job_s: float = 0.02
    payload_bytes: int = 100


QUICK = Size(kills=((20_000, 2),))


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`recovery.broker.<n>`, in ms."""
    mapping = mapping_of({"slow": {"api_config": {"duration_s": size.job_s}}}, instances=2)
    for waiting, kills in size.kills:
        with Daemon(mapping, where.place) as daemon:
            yield _figure(daemon, waiting, kills, size)


def _figure(daemon: Daemon, waiting: int, kills: int, size: Size) -> Figure:
    samples: list[float] = []
    seen: list[float] = []
    count = waiting + int(2 * kills * 3 * HEALTHY_S / size.job_s)
    with Assignments(daemon) as assignments, daemon.client(window=count) as client:
        client.submit_many("slow", (os.urandom(size.payload_bytes) for _ in range(count)))
        client.flush(LIMIT_S)
        for _ in range(kills):
            rest(HEALTHY_S)  # its restart budget
            boot = client.status()["boot"]
            killed_ns = time.time_ns()
            os.kill(daemon.child("broker").pid, signal.SIGKILL)
            found = assignments.of_later_boot(boot, "a new broker", LIMIT_S)
            samples.append((found.at_ns - killed_ns) / 1e6)
            seen.append((found.seen_ns - killed_ns) / 1e6)
        left = client.status()["jobs"]["unfinished"]
    return median_of(
        f"recovery.broker.{waiting}",
        "ms",
        samples,
        target=TARGETS.get(waiting),
        axes={"waiting": waiting},
        details={"unfinished_at_the_end": left, "seen_by_a_subscriber_max_ms": max(seen)},
        settings={"job_s": size.job_s, "healthy_s": HEALTHY_S, "durability": "fsync"},
    )
