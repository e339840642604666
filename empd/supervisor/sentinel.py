"""A small process that outlives the supervisor by a moment, to take with it what the kernel would leave behind.

The kernel kills the children of a dead supervisor (PDEATHSIG), but not *their* children. The sentinel is told every
session that the supervisor starts and ends; when the supervisor's end of the pipe closes, however that came about,
it kills what is left of those sessions, and ends.

    supervisor ── pipe: (sign, session) records ──▶ sentinel        sign "+": began, "-": is over

Only where there are no cgroups: there systemd does this.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from typing import NoReturn

from empd import prctl
from empd.supervisor.descriptors import close_all_but

_RECORD = struct.Struct("<ci")
_LAST_LOOKS = 100


class Sentinel:
    """The supervisor's side. `end_session` is what the sentinel does to each session that is left over.

    A program image that takes this one's place by exec has to inherit the pipe, or the sentinel strikes.
    """

    def __init__(self, end_session: Callable[[int], bool]) -> None:
        self._end_session = end_session
        self._sessions: set[int] = set()
        self._fd = -1
        self._pid = 0

    def add(self, session: int) -> None:
        """A session began."""
        self._sessions.add(session)
        self._send(b"+", session)

    def drop(self, session: int) -> None:
        """A session is over: its number may soon be somebody else's."""
        self._sessions.discard(session)
        self._send(b"-", session)

    def _send(self, sign: bytes, session: int) -> None:
        if self._fd >= 0:
            try:
                os.write(self._fd, _RECORD.pack(sign, session))
                return
            except BlockingIOError:
                # It lives but does not read. It must not strike at what it was told long ago.
                os.kill(self._pid, signal.SIGKILL)
            except BrokenPipeError:
                pass  # somebody killed it
            os.close(self._fd)
        # The next one is told everything anew.
        self._start()

    def _start(self) -> None:
        read_fd, self._fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._pid = os.fork()
            if self._pid == 0:
                self._watch(read_fd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(read_fd)
        for session in self._sessions:
            os.write(self._fd, _RECORD.pack(b"+", session))

    def _watch(self, fd: int) -> NoReturn:
        """Every signal that can be blocked stays blocked: only the end of the pipe, or SIGKILL, ends this."""
        try:
            os.setsid()
            prctl.set_name("empd:sentinel")
            close_all_but((0, 1, 2, fd))
            sessions: set[int] = set()
            while data := os.read(fd, _RECORD.size * 512):
                for sign, session in _RECORD.iter_unpack(data):
                    if sign == b"+":
                        sessions.add(session)
                    else:
                        sessions.discard(session)
            # Whoever forks while the first look is taken is met by the next one.
            for _ in range(_LAST_LOOKS):
                sessions = {session for session in sessions if not self._end_session(session)}
        finally:
            os._exit(0)
