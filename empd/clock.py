"""Time as a value. Only process shells read a clock; everything below gets an `Instant` passed in.

`mono_ns` is CLOCK_BOOTTIME-like steady time (Linux `CLOCK_MONOTONIC`): the same for all processes of one
kernel boot, never set back. `wall_ns` is Unix time and may jump.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Instant(NamedTuple):
    """One moment on both clocks, in nanoseconds."""

    mono_ns: int
    wall_ns: int


def now() -> Instant:
    """The present moment."""
    return Instant(time.monotonic_ns(), time.time_ns())


def boot_id() -> str:
    """The kernel's id of this boot; monotonic times compare only within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def seconds_to_ns(seconds: float) -> int:
    """Seconds (float) to whole nanoseconds."""
    return int(seconds * NS_PER_S)


def host_id() -> str:
    """Equal for all processes of one booted machine, different elsewhere: who shares it, shares its memory."""
    machine = Path("/etc/machine-id")
    name = machine.read_text().strip() if machine.exists() else os.uname().nodename
    return f"{name}:{boot_id()}"
