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
from empd.bench.daemon import Daemon, mapping_of, wait_until
from empd.bench.figures import Figure, Target, median_of
from empd.bench.recovery import HEALTHY_S, LIMIT_S

TARGET = Target(1500.0)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs waiting at each kill (a few more at the first), and what each takes."""

    waiting: int = 100_000
    kills: int = 7
    job_s: float = 0.02
    payload_bytes: int = 100


QUICK = Size(waiting=20_000, kills=2)


def measure(size: Size, place: str) -> Iterator[Figure]:
    """`recovery.broker`, in ms."""
    mapping = mapping_of({"slow": {"api_config": {"duration_s": size.job_s}}}, instances=2)
    samples: list[float] = []
    seen: list[float] = []
    with Daemon(mapping, place) as daemon:
        spare = int(2 * size.kills * 3 * HEALTHY_S / size.job_s)
        count = size.waiting + spare
        with Assignments(daemon) as assignments, daemon.client(window=count) as client:
            client.submit_many("slow", (os.urandom(size.payload_bytes) for _ in range(count)))
            client.flush(LIMIT_S)
            for _ in range(size.kills):
                healthy_s = time.monotonic() + HEALTHY_S
                wait_until(lambda at_s=healthy_s: time.monotonic() >= at_s, "the restart budget")  # type: ignore[misc]
                boot = client.status()["boot"]
                killed_ns = time.time_ns()
                os.kill(daemon.child("broker").pid, signal.SIGKILL)
                found = assignments.next(lambda one, old=boot: one.boot > old, "a new broker", LIMIT_S)  # type: ignore[misc]
                samples.append((found.at_ns - killed_ns) / 1e6)
                seen.append((found.seen_ns - killed_ns) / 1e6)
            left = client.status()["jobs"]["unfinished"]
    settings = {**msgspec.to_builtins(size), "healthy_s": HEALTHY_S, "durability": "fsync"}
    details = {"unfinished_at_the_end": left, "seen_by_a_subscriber_max_ms": max(seen)}
    yield median_of("recovery.broker", "ms", samples, target=TARGET, details=details, settings=settings)
