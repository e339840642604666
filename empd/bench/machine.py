"""Where figures were measured: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from empd import __version__

LIBRARIES = ("pyzmq", "msgspec", "uvloop", "aiohttp")


def describe(place: str) -> dict[str, Any]:
    """Processor, system, versions, and the file system under `place`, where state lies."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "empd": __version__,
        "sqlite": sqlite3.sqlite_version,
        **{name: metadata.version(name) for name in LIBRARIES},
        "state_filesystem": _filesystem(place),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(place: str) -> str:
    path = os.path.realpath(place)
    mounts = [part for part in psutil.disk_partitions(all=True) if path.startswith(part.mountpoint.rstrip("/") + "/")]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
