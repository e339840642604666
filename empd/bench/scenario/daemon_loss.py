"""The whole daemon lost with a backlog, and started again: to the next assignment, nothing missing.

`supervisor`: kill -9 of the supervisor; its processes must go with it, and the service manager starts it again (here
this program, at once). `box`: all processes killed in the same moment and the runtime directory gone, as after a power
cut.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec

from empd.bench.assignments import Assignments
from empd.bench.daemon import Daemon, Where, mapping_of
from empd.bench.figures import Figure, Plot, median_of
from empd.bench.running import LIMIT_S, BenchError

KILLED = {"supervisor": "the supervisor", "box": "all at once"}
PLOTS = (Plot("kill -9 to the next claim of a new daemon", "killed"),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that wait at each loss, losses of each kind, and what a job takes: so long that few end meanwhile."""

    waiting: int = 100_000
    losses: int = 5
    job_s: float = 0.2
    payload_bytes: int = 100


QUICK = Size(waiting=10_000, losses=2)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`recovery.supervisor` and `recovery.box`, in ms."""
    mapping = mapping_of({"slow": {"api_config": {"duration_s": size.job_s}}}, instances=2)
    for name in KILLED:
        with Daemon(mapping, where.place) as daemon:
            kill = daemon.kill_supervisor if name == "supervisor" else daemon.kill_box
            yield _figure(name, daemon, kill, size)


def _figure(name: str, daemon: Daemon, kill: Callable[[], None], size: Size) -> Figure:
    samples, gone = [], []
    with Assignments(daemon) as assignments, daemon.client(window=size.waiting) as client:
        jobs = client.submit_many("slow", (os.urandom(size.payload_bytes) for _ in range(size.waiting)))
        client.flush(LIMIT_S)
        for _ in range(size.losses):
            boot = client.status()["boot"]
            begun_ns = time.time_ns()
            kill()
            gone.append((time.time_ns() - begun_ns) / 1e6)
            daemon.start()
            found = assignments.of_later_boot(boot, "the next claim", LIMIT_S)
            samples.append((found.at_ns - begun_ns) / 1e6)
        client.poll()
        known = client.status()["jobs"]["unfinished"] + sum(job.ended for job in jobs)
    # A result may be on its way in this moment: what counts is that none is missing.
    if known < size.waiting:
        raise BenchError(f"{size.waiting - known} of {size.waiting} accepted jobs are lost")
    details = {"processes_gone_max_ms": max(gone), "jobs_lost": 0}
    settings = {**msgspec.to_builtins(size), "durability": "fsync"}
    axes = {"killed": KILLED[name]}
    return median_of(f"recovery.{name}", "ms", samples, axes=axes, details=details, settings=settings)
