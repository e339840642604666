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
from empd.bench.figures import Figure, Plot, Target, median_of
from empd.bench.running import rest

CPU_TARGET = Target(0.5)
MEMORY_TARGET = Target(30.0)
_MIB = 1 << 20
PLOTS = (Plot("CPU while nothing is to be done", "process"),)

Look = tuple[float, dict[str, float]]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """`parts` looks, one every `part_s`, after `settle_s` of rest."""

    parts: int = 6
    part_s: float = 10.0
    settle_s: float = 3.0


QUICK = Size(parts=2, part_s=2.0, settle_s=1.0)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`memory.worker` in MiB; `idle.cpu` in percent of one core, and the part of each kind of process in it."""
    settings = {**msgspec.to_builtins(size), "workers": 2, "gpus": "none"}
    with Daemon(noop_mapping(), where.place) as daemon:
        yield _worker_memory(daemon, settings)
        rest(size.settle_s)
        yield from _cpu(daemon, size, settings)


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


def _cpu(daemon: Daemon, size: Size, settings: dict[str, Any]) -> Iterator[Figure]:
    looks = [_used(daemon)]
    for _ in range(size.parts):
        rest(size.part_s)
        looks.append(_used(daemon))
    seconds = looks[-1][0] - looks[0][0]
    for kind in ("all", *looks[0][1]):
        samples = [_percent(kind, *pair) for pair in pairwise(looks)]
        yield Figure(
            name="idle.cpu" if kind == "all" else f"idle.cpu.{kind}",
            value=_percent(kind, looks[0], looks[-1]),
            unit="% of a core",
            samples=samples,
            statistic="mean",
            target=CPU_TARGET if kind == "all" else None,
            axes={"process": kind},
            details={"seconds": seconds},
            settings=settings,
        )


def _percent(kind: str, before: Look, after: Look) -> float:
    """Of one core, between two looks."""
    used_s = sum(after[1][name] - before[1][name] for name in after[1] if kind in ("all", name))
    return 100 * used_s / (after[0] - before[0])


def _used(daemon: Daemon) -> Look:
    """(now, CPU seconds by kind of process)."""
    used = daemon.cpu_s()
    used.pop("client")
    return time.monotonic(), used
