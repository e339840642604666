"""Sockets as the broker uses them: a ROUTER whose peers are known by their identity."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

import zmq

from empd.errors import ConfigError
from empd.payload import FRAME_BYTES_MAX
from empd.wire.curve import Doorkeeper
from empd.wire.sockets import MORE_NOBLOCK, NOBLOCK, readable

_RECEIVE_MAX = 256
RECEIVE_BYTES_MAX = 4 << 20
"""What one pass takes in: everyone waits until it is decided, written and sent."""
_BACKLOG_FRAMES = 2_000
BACKLOG_BYTES_MAX = 8 << 20
_MARK_BYTES = 256 << 10
_MARK_FRAMES = 250
_ROOM_MARKS = 4
_TELL_S_MAX = 0.02
_BACKLOGS_KEPT = 1_024
MESSAGE_BYTES_MAX = FRAME_BYTES_MAX + 4096


class Backlog:
    """What one peer was sent and the transport still holds, in bytes and in frames.

    The transport counts frames, of any size up to a mebibyte. It can tell when it is done with a frame, for a price;
    and it sends a peer's frames in their order: so one frame in every `_MARK_BYTES` or `_MARK_FRAMES` is asked about,
    and stands for all before it.
    """

    __slots__ = ("_marks", "_stuck", "held", "unmarked", "unmarked_frames")

    def __init__(self) -> None:
        self._marks: deque[tuple[int, zmq.MessageTracker]] = deque()
        self._stuck = False
        self.held = 0
        self.unmarked = 0
        self.unmarked_frames = 0

    def count(self, size: int) -> bool:
        """A frame is to be sent; True when it is one to be asked about."""
        self.unmarked += size
        self.unmarked_frames += 1
        return self.unmarked >= _MARK_BYTES or self.unmarked_frames >= _MARK_FRAMES

    def settle(self) -> int:
        """Forgets what is sent; returns the bytes that are not."""
        while self._marks and self._marks[0][1].done:
            self.held -= self._marks.popleft()[0]
            self._stuck = False
        return self.held

    def is_full(self) -> bool:
        """Whether the peer is owed too much. What is sent is told by a thread of the transport, which may not have had
        its turn: so it is given a moment, once for each time that the peer is stuck."""
        while self.settle() >= BACKLOG_BYTES_MAX:
            if self._stuck:
                return True
            with contextlib.suppress(zmq.NotDone):
                self._marks[0][1].wait(_TELL_S_MAX)
                continue
            self._stuck = True
        return False

    def mark(self, tracker: zmq.MessageTracker) -> None:
        """Everything up to here is sent when this is done."""
        self._marks.append((self.unmarked, tracker))
        self.held += self.unmarked
        self.unmarked = self.unmarked_frames = 0

    @property
    def marks(self) -> int:
        """Marks that are not done; `settle` first."""
        return len(self._marks)


class Router:
    """A bound ROUTER socket. A frame to a peer that is gone or does not read is refused, not dropped: one that does not
    read is owed `BACKLOG_BYTES_MAX` and a few frames at most.

    After a refusal `gone` says which of the two it was.

    A tcp endpoint is a CURVE server with the keys in `curve_dir`. `descriptors` are to be polled unless `ready`; when
    one of them is readable, `receive`. Raises ConfigError when the keys cannot be used, or the address not bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, curve_dir: Path | None = None) -> None:
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
        self._door = _door(context, endpoint, curve_dir)
        if self._door is not None:
            self._door.secure(socket)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError([f"endpoint: cannot listen on {endpoint}: {error.strerror}"]) from None
        self.socket = socket
        self.gone = False
        self._backlogs: dict[bytes, Backlog] = {}
        sockets = (socket,) if self._door is None else (socket, self._door.socket)
        self.descriptors = tuple(int(each.getsockopt(zmq.FD)) for each in sockets)
        self._found_empty = False
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> list[tuple[bytes, bytes]]:
        """Some of the (identity, frame) pairs that are there, without waiting. A message of several parts, which
        is none of this protocol, comes as an empty frame."""
        if self._door is not None:
            self._door.answer()
        found: list[tuple[bytes, bytes]] = []
        size = 0
        socket, receive = self.socket, self.socket.recv
        self._found_empty = False
        try:
            while not self._found_empty and len(found) < _RECEIVE_MAX and size < RECEIVE_BYTES_MAX:
                # A frame knows whether it is the last of its message, which a socket has to be asked.
                identity, frame = receive(NOBLOCK), receive(NOBLOCK, copy=False)
                data = b"" if frame.more else frame.bytes
                found.append((identity, data))
                size += len(data)
                while frame.more:
                    frame = receive(NOBLOCK, copy=False)
                self._found_empty = not readable(socket)  # cheaper than an exception
        except zmq.Again:
            self._found_empty = True
        return found

    def ready(self) -> bool:
        """Whether something is there. If not, `descriptors` tell of what comes next.

        A socket that was found empty is not asked again until it is used: sending, too, may take in what has come.
        """
        if not self._found_empty:
            self._found_empty = not readable(self.socket)
        return not self._found_empty or (self._door is not None and readable(self._door.socket))

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Sends without waiting; False when the peer is gone or does not read."""
        socket = self.socket
        backlog = self._backlogs.get(identity) or self._backlog(identity)
        to_mark = backlog.count(len(frame))
        if to_mark and backlog.is_full():
            self.gone = False
            return False
        self._found_empty = False
        try:
            socket.send(identity, MORE_NOBLOCK)
            if to_mark:
                message = zmq.Frame(frame, track=True, copy=False, copy_threshold=0)
                backlog.mark(socket.send(message, NOBLOCK, copy=False, track=True))
            else:
                socket.send(frame, NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.gone = error.errno == zmq.EHOSTUNREACH
            return False
        return True

    def has_room(self, identity: bytes) -> bool:
        """Whether what the peer has not read is far from what it may be owed, in bytes and in frames."""
        backlog = self._backlogs.get(identity)
        if backlog is None:
            return True
        backlog.settle()
        return backlog.marks < _ROOM_MARKS

    def _backlog(self, identity: bytes) -> Backlog:
        if len(self._backlogs) >= _BACKLOGS_KEPT:  # peers come and go, and nothing tells that they are gone
            self._backlogs = {peer: backlog for peer, backlog in self._backlogs.items() if backlog.settle()}
        backlog = self._backlogs[identity] = Backlog()
        return backlog

    def close(self) -> None:
        """Closes the socket; what is not yet with a peer gets a moment to go."""
        if self._door is not None:
            self._door.close()
        self.socket.close(linger=200)


def _door(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, curve_dir: Path | None) -> Doorkeeper | None:
    if not endpoint.startswith("tcp://"):
        return None
    if curve_dir is None:
        raise ConfigError([f"endpoint: {endpoint} would be open to anyone; accepted: tcp:// together with curve_dir"])
    return Doorkeeper(context, curve_dir)
