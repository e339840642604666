"""The ZeroMQ socket of a client, and the notices of its connection coming and going."""

from __future__ import annotations

from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from empd.errors import ConfigError
from empd.wire import curve
from empd.wire.sockets import NOBLOCK, readable

RECONNECT_MS_MIN, RECONNECT_MS_MAX = 10, 200
HEARTBEAT_MS = 5_000
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = zmq.EVENT_DISCONNECTED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Channel:
    """A DEALER to one endpoint, with the CURVE keys in `curve_dir` where it is a tcp one. Not safe for several threads
    at once. `refusal` is empty, or says why the daemon does not speak with this client; it is not tried again.

    Its two descriptors are edge-triggered: poll them only after `receive` and `changes` found nothing.
    """

    def __init__(self, endpoint: str, curve_dir: Path | None = None) -> None:
        self.endpoint = endpoint
        self.refusal = ""
        self.closed = False
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
        try:
            if curve_dir is not None:
                curve.secure_client(socket, curve_dir)
            self._monitor = socket.get_monitor_socket(_UP | _DOWN | _REFUSED)
            socket.connect(endpoint)
        except (zmq.ZMQError, ConfigError):
            self._context.destroy(linger=0)
            raise
        self.descriptors = (int(socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD)))

    def changes(self) -> list[bool]:
        """The connection's changes since the last call: True came up, False went down."""
        changes: list[bool] = []
        while readable(self._monitor):
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            changes.append(event == _UP)
            if event & _REFUSED:
                self.refusal = (
                    f"the empd at {self.endpoint} does not take this client's CURVE key; ask its operator to put "
                    "client.key into clients/ of the daemon's curve_dir"
                )
        return changes

    def receive(self) -> list[bytes]:
        """All frames that have come."""
        received: list[bytes] = []
        socket = self._socket
        while readable(socket):
            received.append(socket.recv(NOBLOCK))
        return received

    def send(self, outgoing: list[bytes]) -> None:
        """Sends frames; ZeroMQ keeps them while there is no connection."""
        for data in outgoing:
            self._socket.send(data, NOBLOCK)

    def close(self, linger_s: float = 0.0) -> None:
        """Closes, giving frames that are still here `linger_s` to leave."""
        if self.closed:
            return
        self.closed = True
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))
        self._context.term()
