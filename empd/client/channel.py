"""The ZeroMQ socket of a client, and the notices of its connection coming and going."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

RECONNECT_MS_MIN, RECONNECT_MS_MAX = 10, 200
HEARTBEAT_MS = 5_000
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = zmq.EVENT_DISCONNECTED


class Channel:
    """A DEALER to one endpoint. Not safe for several threads at once.

    Its two descriptors are edge-triggered: poll them only after `receive` and `changes` found nothing.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._context = zmq.Context(io_threads=1)
        self._socket = socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        # The window bounds what is on its way, in both directions; a full queue would block the caller instead.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS_MIN)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        if endpoint.startswith("tcp://"):
            # A local socket closes with its daemon; a network may fall silent.
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        self._monitor = socket.get_monitor_socket(_UP | _DOWN)
        socket.connect(endpoint)
        self.descriptors = (int(socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD)))
        self.closed = False

    def changes(self) -> list[bool]:
        """The connection's changes since the last call: True came up, False went down."""
        changes: list[bool] = []
        while _readable(self._monitor):
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            changes.append(event == _UP)
        return changes

    def receive(self) -> list[bytes]:
        """All frames that have come."""
        received: list[bytes] = []
        socket = self._socket
        while _readable(socket):
            received.append(socket.recv(zmq.NOBLOCK))
        return received

    def send(self, outgoing: list[bytes]) -> None:
        """Sends frames; ZeroMQ keeps them while there is no connection."""
        for data in outgoing:
            self._socket.send(data, zmq.NOBLOCK)

    def close(self, linger_s: float = 0.0) -> None:
        """Closes, giving frames that are still here `linger_s` to leave."""
        if self.closed:
            return
        self.closed = True
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))
        self._context.term()


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
