"""Signals as data: handlers only append to a list, and a byte on a pipe wakes the loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """A signal that comes before there are `Signals` waits for them: a stop that is asked for while the daemon gets
    ready to start is a stop, not a death."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Signals:
    """The signals that came since the last `take`. `fd` becomes readable when there is something to take."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._came: list[signal.Signals] = []
        self._before = {number: signal.getsignal(number) for number in HANDLED}
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(signal.Signals(number))

    def take(self) -> list[signal.Signals]:
        """The signals that came, oldest first; empties the pipe."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            pass
        came, self._came = self._came, []
        return came

    def close(self) -> None:
        """The handlers of before are back."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write_fd)


def forget_in_child() -> None:
    """In a fresh child: default handlers for all that this process handles, no wakeup, nothing blocked."""
    signal.set_wakeup_fd(-1)
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
