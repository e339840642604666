"""The kernel's switches that Python has no name for."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PTRACER = 0x59616D61
_NAME_BYTES_MAX = 15

_SYSCALLS = {"x86_64": (315, 314), "aarch64": (275, 274)}  # sched_getattr, sched_setattr

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int | bytes) -> None:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    if _libc.prctl(ctypes.c_int(option), argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl({option}): {os.strerror(errno)}")


def die_with_parent() -> None:
    """The kernel kills this process when its parent dies. The caller checks getppid afterwards."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name that `ps` and `top` show; cut to 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES_MAX])


def allow_tracing_by(pid: int) -> None:
    """Lets `pid` and its descendants read this process's stacks where Yama restricts that; no-op elsewhere."""
    try:
        _prctl(_PR_SET_PTRACER, pid)
    except OSError:
        return


class Scheduling(NamedTuple):
    """The kernel's `struct sched_attr`. `runtime_ns`: how long a turn on a processor is."""

    size: int
    policy: int
    flags: int
    nice: int
    priority: int
    runtime_ns: int
    deadline_ns: int
    period_ns: int


_SCHEDULING = struct.Struct("=IIQiIQQQ")


def scheduling(thread: int = 0) -> Scheduling | None:
    """How a thread (0: this one) is scheduled; None where the kernel does not tell."""
    numbers = _SYSCALLS.get(platform.machine())
    found = ctypes.create_string_buffer(_SCHEDULING.size)
    if numbers is None or _libc.syscall(numbers[0], thread, found, _SCHEDULING.size, 0) != 0:
        return None
    return Scheduling._make(_SCHEDULING.unpack(found.raw))


def take_short_turns(turn_ns: int) -> bool:
    """This thread, and those that it begins, have shorter turns on a processor and so come sooner to the next (Linux
    6.12); their share of it stays. False where the kernel cannot, or an operator has chosen another policy."""
    now = scheduling()
    if now is None or now.policy != os.SCHED_OTHER:
        return False
    wanted = now._replace(size=_SCHEDULING.size, flags=0, runtime_ns=turn_ns)
    return bool(_libc.syscall(_SYSCALLS[platform.machine()][1], 0, _SCHEDULING.pack(*wanted), 0) == 0)
