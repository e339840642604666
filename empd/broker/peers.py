"""Sockets as the broker uses them: a ROUTER whose peers are known by their identity."""

from __future__ import annotations

from pathlib import Path

import zmq

from empd.payload import FRAME_BYTES_MAX

_RECEIVE_MAX = 256
_BACKLOG_FRAMES = 2_000
MESSAGE_BYTES_MAX = FRAME_BYTES_MAX + 4096


class Router:
    """A bound ROUTER socket. A frame to a peer that is gone or does not read is refused, not dropped."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, _BACKLOG_FRAMES)
        socket.setsockopt(zmq.RCVHWM, _BACKLOG_FRAMES)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
        if endpoint.startswith("ipc://"):
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        socket.bind(endpoint)
        self.socket = socket
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> list[tuple[bytes, bytes]]:
        """Some of the (identity, frame) pairs that are there, without waiting. A message of several parts, which
        is none of this protocol, comes as an empty frame."""
        found: list[tuple[bytes, bytes]] = []
        socket = self.socket
        # Asking for events is cheaper than being told by an exception that there are none.
        while len(found) < _RECEIVE_MAX and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            parts = socket.recv_multipart(zmq.NOBLOCK)
            found.append((parts[0], parts[1] if len(parts) == 2 else b""))
        return found

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Sends without waiting; False when the peer is gone or does not read."""
        socket = self.socket
        try:
            socket.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
            socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def close(self) -> None:
        """Closes the socket; what is not yet with a peer gets a moment to go."""
        self.socket.close(linger=200)
