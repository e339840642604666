"""What processes use of the machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]  # it ships no types

_CPUCLOCK_SCHED = 2


class Memory(NamedTuple):
    """Bytes. `uss` is what would be free without the process, `pss` counts shared pages by their share."""

    rss: float
    pss: float
    uss: float


def exists(pid: int) -> bool:
    """The process is there and not a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[int]:
    """The process's children, theirs, and so on."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def cpu_s(pid: int) -> float:
    """CPU seconds used so far, in user and kernel mode, by all its threads, those that ended included.

    The process's own clock (clock_getcpuclockid(3)) counts nanoseconds, where /proc counts ticks of 10 ms.
    Raises ProcessLookupError when there is no such process.
    """
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        raise ProcessLookupError(f"there is no process {pid}") from None


def written_bytes(pid: int) -> int:
    """What it has handed to the kernel to be written, in bytes: files, pipes and sockets of stream type."""
    return int(psutil.Process(pid).io_counters().write_chars)


def memory(pid: int) -> Memory:
    """What it holds now."""
    found = psutil.Process(pid).memory_full_info()
    return Memory(found.rss, found.pss, found.uss)


def total_memory_bytes() -> int:
    """The machine's."""
    return int(psutil.virtual_memory().total)


def filesystem(path: str) -> str:
    """The type of the file system that holds an absolute path."""
    mounts = psutil.disk_partitions(all=True)
    holding = [mount for mount in mounts if path.startswith(mount.mountpoint.rstrip("/") + "/")]
    return str(max(holding, key=lambda mount: len(mount.mountpoint)).fstype) if holding else "unknown"
