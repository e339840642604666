"""A bound ZeroMQ socket on the event loop, without a task or a future for each frame.

ZeroMQ's descriptor is edge-triggered: it is readable once when something comes, and silent until all of it was
taken. So every wake-up takes frames until there are none, and a send (which may swallow an edge) is followed by
another look. A flood is taken in slices, so that other work gets its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import zmq

from empd.wire.sockets import NOBLOCK, readable

FRAMES_PER_TURN = 256
MESSAGE_BYTES_MAX = (1 << 20) + 4096


class Inlet:
    """Calls `take(parts)` for every message on a socket of `kind` bound at `endpoint`.

    A message above the size of a frame closes its sender's connection before it is in memory.
    """

    def __init__(self, endpoint: str, kind: int, take: Callable[[list[bytes]], None], queue_max: int) -> None:
        self._take = take
        self._context = zmq.Context(io_threads=1)
        self._socket = socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.RCVHWM, queue_max)
        socket.setsockopt(zmq.SNDHWM, queue_max)
        _remove_stale(endpoint)
        socket.bind(endpoint)
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._closed = False
        self._loop.add_reader(self._descriptor, self._drain)
        self._again = self._loop.call_soon(self._drain)

    def send(self, parts: list[bytes]) -> None:
        """Sends without waiting; a peer that is gone or does not read loses the message."""
        if self._closed:
            return
        with contextlib.suppress(zmq.Again, zmq.ZMQError):
            self._socket.send_multipart(parts, NOBLOCK)
        self._look_again()

    def close(self) -> None:
        """Stops and closes. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        if self._again is not None:
            self._again.cancel()
        self._socket.close(0)
        self._context.term()

    def _look_again(self) -> None:
        if self._again is None and not self._closed:
            self._again = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(FRAMES_PER_TURN):
            if self._closed or not readable(self._socket):
                return
            try:
                parts = self._socket.recv_multipart(NOBLOCK)
            except zmq.Again:
                return
            self._take(parts)
        self._look_again()


def _remove_stale(endpoint: str) -> None:
    """A killed predecessor leaves its socket file behind; the supervisor starts a successor only after its death."""
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.removeprefix("ipc://"))
