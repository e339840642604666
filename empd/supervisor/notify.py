"""sd_notify: one datagram for each thing that systemd should know. Without systemd, an object that does nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Protocol


class Notifier(Protocol):
    """What the supervisor tells its own supervisor."""

    watchdog_s: float | None  # how often `watchdog` is due; None = never

    def ready(self, status: str) -> None: ...

    def status(self, status: str) -> None: ...

    def reloading(self, status: str) -> None: ...

    def stopping(self, status: str) -> None: ...

    def watchdog(self) -> None: ...


class Off:
    """Nobody listens."""

    watchdog_s: float | None = None

    def ready(self, status: str) -> None: ...

    def status(self, status: str) -> None: ...

    def reloading(self, status: str) -> None: ...

    def stopping(self, status: str) -> None: ...

    def watchdog(self) -> None: ...


class Systemd:
    """Datagrams to the socket that NOTIFY_SOCKET names; a lost one is never an error."""

    def __init__(self, address: str, watchdog_s: float | None) -> None:
        self.watchdog_s = watchdog_s
        # "@name" is systemd's spelling of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._status = ""

    def ready(self, status: str) -> None:
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def reloading(self, status: str) -> None:
        self._status = status
        monotonic_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        self._status = status
        self._send("STOPPING=1", f"STATUS={status}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            # systemd is gone or busy: nothing that this process could do about it, and no reason to stop.
            return


def from_environment(environ: MutableMapping[str, str]) -> Notifier:
    """The notifier that NOTIFY_SOCKET and WATCHDOG_USEC ask for; `watchdog` is due at half the systemd limit."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return Off()
    limit_us = environ.get("WATCHDOG_USEC", "")
    wanted = (
        limit_us.isdigit() and int(limit_us) > 0 and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    )
    return Systemd(address, int(limit_us) / 2e6 if wanted else None)
