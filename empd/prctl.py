"""The three kernel switches that Python has no name for."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PTRACER = 0x59616D61
_NAME_BYTES_MAX = 15

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
