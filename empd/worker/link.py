"""The worker's socket to the broker: a DEALER without asyncio's wrappers, read when its descriptor says so.

A ZeroMQ descriptor is edge-triggered: it tells once that something changed. So every read goes on until nothing is
left, and every send is followed by a look at EVENTS, since sending may have consumed the edge of what has arrived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from empd.errors import ProtocolError
from empd.wire import codec
from empd.wire.frames import Frame
from empd.wire.sockets import NOBLOCK, readable

RECONNECT_MS = 10
_FRAMES_A_TURN = 64
_EVENTS = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED


class Link:
    """Frames out, frames in, and notice of each new connection.

    `on_frame(frame)` gets every frame of the broker, `on_connected()` runs for each connection before any frame is
    read from it. Frames sent while there is no connection are dropped: what must arrive is said again after `Hello`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        on_frame: Callable[[Any], None],
        on_connected: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_connected = on_connected
        self._pending: deque[bytes] = deque()
        self.connected = False
        self.garbage = 0
        self.connections = 0
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(_EVENTS)
        self._fds: tuple[int, ...] = (self._socket.FD, self._monitor.FD)
        self._loop.add_reader(self._fds[0], self._drain)
        self._loop.add_reader(self._fds[1], self._drain_monitor)
        self._socket.connect(endpoint)
        self._loop.call_soon(self._drain)
        self._loop.call_soon(self._drain_monitor)

    def send(self, frame: Frame) -> bool:
        """Sends now, or as soon as the connection takes it. False when there is no connection: it is dropped."""
        if not self.connected:
            return False
        self._pending.append(codec.encode(frame))
        self._push()
        return True

    def close(self) -> None:
        """Closes the sockets; twice is fine."""
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = ()
        self.connected = False
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _push(self) -> None:
        pending = self._pending
        while pending:
            try:
                self._socket.send(pending[0], NOBLOCK)
            except zmq.Again:
                break
            pending.popleft()
        if readable(self._socket):
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if not self._fds:
            return
        # A new connection's Hello goes before anything else, and its notice may wait behind a frame's.
        self._drain_monitor()
        receive = self._socket.recv
        for _ in range(_FRAMES_A_TURN):
            try:
                data = receive(NOBLOCK)
            except zmq.Again:
                break
            try:
                frame = codec.decode_for_worker(data)
            except ProtocolError:
                self.garbage += 1
                continue
            self._on_frame(frame)
            if not readable(self._socket):  # cheaper than being told by an exception
                break
        else:
            self._loop.call_soon(self._drain)
        if self._pending:
            self._push()

    def _drain_monitor(self) -> None:
        while self._fds and readable(self._monitor):
            parts = self._monitor.recv_multipart(NOBLOCK)
            event = parse_monitor_message(parts)["event"]
            self._pending.clear()
            self.connected = event == zmq.Event.HANDSHAKE_SUCCEEDED
            if self.connected:
                self.connections += 1
                self._on_connected()
