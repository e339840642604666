"""Where figures were measured: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib import metadata
from pathlib import Path
from typing import Any

from empd.bench import processes

LIBRARIES = ("empd", "pyzmq", "msgspec", "uvloop", "aiohttp")


def describe(place: str) -> dict[str, Any]:
    """Processor, system, versions, and the file system under `place`, where state lies."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_bytes": processes.total_memory_bytes(),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: metadata.version(name) for name in LIBRARIES},
        "state_filesystem": processes.filesystem(os.path.realpath(place)),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
