"""What is asked of ZeroMQ sockets at every frame.

pyzmq's flags are Python's own: each `&` and `|` of them makes a flag, which takes longer than asking the socket. So
they are plain numbers here.
"""

from __future__ import annotations

import zmq

NOBLOCK = int(zmq.NOBLOCK)
MORE_NOBLOCK = int(zmq.SNDMORE) | NOBLOCK
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a frame is there. If not, the socket's descriptor tells of the next one, once."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)
