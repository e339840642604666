"""Where figures were measured, and of what: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from empd import __version__
from empd.bench import processes

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where this is one."""

LIBRARIES = ("pyzmq", "msgspec", "uvloop", "aiohttp")


def describe(place: str) -> dict[str, Any]:
    """Processor, system, versions, the commit when in a checkout, and the file system under `place`, where state
    lies."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_bytes": processes.total_memory_bytes(),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "empd": __version__,
        "commit": commit(ROOT),
        **{name: metadata.version(name) for name in LIBRARIES},
        "state_filesystem": processes.filesystem(os.path.realpath(place)),
    }


def commit(directory: Path) -> str:
    """The commit that is checked out there, with `+` where files were changed since; empty outside a checkout."""
    if not (directory / ".git").exists():
        return ""
    try:
        found = _git(directory, "rev-parse", "--short=12", "HEAD").strip()
        return found + ("+" if _git(directory, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(directory: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(directory), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
