"""What the daemon costs while nothing is to be done: CPU of all its processes, and memory of a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec

from empd.bench import processes
from empd.bench.daemon import Daemon, Where, noop_mapping
from empd.bench.figures import Figure, Target, median_of
from empd.bench.running import rest

CPU_TARGET = Target(0.5)
MEMORY_TARGET = Target(30.0)
_MIB = 1 << 20


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """`parts` looks, one every `part_s`, after `settle_s` of rest."""

    parts: int = 6
    part_s: float = 10.0
    settle_s: float = 3.0


QUICK = Size(parts=2, part_s=2.0, settle_s=1.0)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`idle.cpu` in percent of one core, `memory.worker` in MiB."""
    settings = {**msgspec.to_builtins(size), "workers": 2, "gpus": "none"}
    with Daemon(noop_mapping(), where.place) as daemon:
        yield _worker_memory(daemon, settings)
        rest(size.settle_s)
        yield _cpu(daemon, size, settings)


def _worker_memory(daemon: Daemon, settings: dict[str, Any]) -> Figure:
    """Workers that have run no job; their connector is the simulation, which imports nothing."""
    found = [processes.memory(pid) for pid in daemon.pids()["worker"]]
    uss = [info.uss / _MIB for info in found]
    details = {
        "rss_mib": median([info.rss / _MIB for info in found]),
        "pss_mib": median([info.pss / _MIB for info in found]),
        "daemon_pss_mib": sum(daemon.pss_bytes().values()) / _MIB,
    }
    return median_of("memory.worker", "MiB", uss, target=MEMORY_TARGET, details=details, settings=settings)


def _cpu(daemon: Daemon, size: Size, settings: dict[str, Any]) -> Figure:
    looks = [_used(daemon)]
    for _ in range(size.parts):
        rest(size.part_s)
        looks.append(_used(daemon))
    samples = [
        100 * (sum(after[1].values()) - sum(before[1].values())) / (after[0] - before[0])
        for before, after in pairwise(looks)
    ]
    (begun_s, first), (ended_s, last) = looks[0], looks[-1]
    took_s = ended_s - begun_s
    shares = {f"{kind}_percent": 100 * (last[kind] - first[kind]) / took_s for kind in last}
    return Figure(
        name="idle.cpu",
        value=100 * (sum(last.values()) - sum(first.values())) / took_s,
        unit="% of a core",
        samples=samples,
        target=CPU_TARGET,
        details={**shares, "seconds": took_s},
        settings=settings,
    )


def _used(daemon: Daemon) -> tuple[float, dict[str, float]]:
    """(now, CPU seconds by kind of process)."""
    used = daemon.cpu_s()
    used.pop("client")
    return time.monotonic(), used
