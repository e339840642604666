"""What processes use of the machine."""

from __future__ import annotations

from typing import NamedTuple

import psutil  # type: ignore[import-untyped]  # it ships no types


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
    """CPU seconds used so far, in user and kernel mode, all threads."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


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
