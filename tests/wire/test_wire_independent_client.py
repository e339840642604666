"""A client of nothing but PROTOCOL.md, ZeroMQ and a few lines of msgpack, against the real daemon.

It shares no code with the package: what it knows of frames stands here as numbers, as the page gives them.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from tests.box import Box

HELLO, SUBMIT, ASK, CANCEL, STATUS, BYE = 1, 2, 3, 4, 7, 11
WELCOME, ACCEPTED, RESULTS, STATES, REPLY, ERROR = 32, 33, 34, 35, 36, 37
MAPPING = {
    "workers": {"w": {"services": ["echo"], "max_concurrent_jobs": 8}},
    "services": {"echo": {"connector": "SimulationConnector", "api_config": {"duration_s": 0, "echo": True}}},
}


def pack(value: Any) -> bytes:
    """Msgpack in long forms only, which a reader has to take as well as the short ones."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return b"\xcf" + struct.pack(">Q", value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"\xdb" + struct.pack(">I", len(data)) + data
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case list():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
        case dict():
            items = b"".join(pack(key) + pack(item) for key, item in value.items())
            return b"\xdf" + struct.pack(">I", len(value)) + items
    raise TypeError(type(value))


SIZED = {
    0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I",
    0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I",
}  # fmt: skip
NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip


class Reader:
    """Msgpack from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self) -> Any:
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0xC0:
            kind, size = (0xDE, code & 15) if code < 0x90 else (0xDC, code & 15) if code < 0xA0 else (0xD9, code & 31)
            return self.sized(kind, size)
        if code in NUMBERS:
            return self.number(NUMBERS[code])
        if code in SIZED:
            return self.sized(code, self.number(SIZED[code]))
        return {0xC0: None, 0xC2: False, 0xC3: True}[code]

    def sized(self, code: int, size: int) -> Any:
        if code <= 0xC6:
            return self.take(size)
        if code <= 0xDB:
            return self.take(size).decode()
        if code <= 0xDD:
            return [self.value() for _ in range(size)]
        return {self.value(): self.value() for _ in range(size)}


def unpack(data: bytes) -> Any:
    reader = Reader(data)
    value = reader.value()
    assert reader.at == len(data)
    return value


class Peer:
    """A DEALER that speaks frames."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def send(self, *frame: Any) -> None:
        self.socket.send(pack(list(frame)))

    def receive(self, tag: int, within_s: float = 10.0) -> list[Any]:
        """The next frame, which must have this tag."""
        assert self.socket.poll(int(within_s * 1000)), f"no frame {tag} came"
        frame: list[Any] = unpack(self.socket.recv())
        assert frame[0] == tag, frame
        return frame

    def hello(self, session: int = 0, token: bytes = b"") -> list[Any]:
        self.send(HELLO, 1, session, token)
        return self.receive(WELCOME)


@pytest.fixture
def connect() -> Iterator[Any]:
    """Makes peers of a daemon."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def make(endpoint: str) -> Peer:
            peer = Peer(context, endpoint)
            stack.callback(peer.socket.close)
            return peer

        yield make


def finished(results: list[Any]) -> dict[int, tuple[int, Any]]:
    """Outcome and result of each job in a Results frame."""
    found = {}
    for _, jobs in results[4]:
        for job in jobs:
            found[job[0]] = (job[1], None if job[2] is None else unpack(job[2]))
    return found


def test_the_whole_way_of_jobs(box: Any, connect: Any) -> None:
    daemon: Box = box(MAPPING)
    peer = connect(f"ipc://{daemon.runtime_dir}/empd.sock")

    peer.send(STATUS, 1)
    early = peer.receive(ERROR)
    assert early[2] == "refused"
    assert "Hello first" in early[3]

    _, version, session, token, instance, _, taken, first, *limits = peer.hello()
    assert (version, taken, len(token), len(instance)) == (1, 0, 16, 32)
    assert limits[:2] == [1048576, 65536]

    payloads = [pack({"x": 1}), pack([None, True, -0.5, "é", b"\x00"])]
    peer.send(SUBMIT, 1, first, [[["echo"], payloads], [["echo", "json", 90], [b'{"y": 2}']]])
    seen: dict[int, tuple[int, Any]] = {}
    accepted = False
    while len(seen) < 3 or not accepted:
        assert peer.socket.poll(10_000)
        frame = unpack(peer.socket.recv())
        if frame[0] == ACCEPTED:
            assert frame[1:] == [1, [], []]
            accepted = True
        else:
            assert (frame[0], frame[1]) == (RESULTS, session)
            seen |= finished(frame)
    ids = [session << 32 | first + n for n in range(3)]
    assert {job: outcome for job, (outcome, _) in seen.items()} == dict.fromkeys(ids, 0)
    assert seen[ids[0]][1]["echo"] == {"x": 1}
    assert seen[ids[1]][1]["echo"] == [None, True, -0.5, "é", b"\x00"]
    assert seen[ids[2]][1]["echo"] == {"y": 2}

    peer.send(ASK, 5, [ids[0]])
    assert finished(peer.receive(RESULTS)).keys() == {ids[0]}
    assert peer.receive(STATES)[1:] == [5, []]

    peer.send(STATUS, 6)
    reply = peer.receive(REPLY)
    assert reply[1] == 6
    assert reply[2]["jobs"]["unfinished"] == 0
    peer.send(BYE)


def test_a_frame_sent_again_after_a_kill_is_taken_once(box: Any, connect: Any) -> None:
    daemon: Box = box(MAPPING)
    peer = connect(f"ipc://{daemon.runtime_dir}/empd.sock")
    (
        _,
        _,
        session,
        token,
        *_,
    ) = peer.hello()
    peer.send(SUBMIT, 1, 1, [[["echo"], [pack(1)]]])
    peer.receive(ACCEPTED)
    daemon.signal("broker")
    again = connect(f"ipc://{daemon.runtime_dir}/empd.sock")
    welcome = again.hello(session, token)
    assert (welcome[2], welcome[6], welcome[7]) == (session, 1, 2)
    again.send(SUBMIT, 1, 1, [[["echo"], [pack(1)]]])
    again.send(SUBMIT, 2, 2, [[["echo"], [pack(2)]]])
    accepted, ended = set(), set()
    while accepted != {1, 2} or session << 32 | 2 not in ended:
        assert again.socket.poll(10_000)
        frame = unpack(again.socket.recv())
        if frame[0] == ACCEPTED:
            accepted.add(frame[1])
        else:
            ended |= finished(frame).keys()
    again.send(ASK, 9, [session << 32 | 1, session << 32 | 2])
    counts: dict[int, int] = {}
    while (frame := unpack(again.socket.recv()))[0] == RESULTS:
        for job in finished(frame):
            counts[job] = counts.get(job, 0) + 1
    assert frame[0] == STATES
    assert counts == {session << 32 | 1: 1, session << 32 | 2: 1}


def test_refusals_and_nonsense_leave_the_conversation_going(box: Any, connect: Any) -> None:
    daemon: Box = box(MAPPING)
    peer = connect(f"ipc://{daemon.runtime_dir}/empd.sock")
    peer.hello()
    peer.socket.send(b"\xff not a frame")
    assert peer.receive(ERROR)[1:3] == [0, "invalid_input"]
    peer.socket.send_multipart([pack([STATUS, 1]), b"second part"])
    assert peer.receive(ERROR)[1] == 0
    peer.send(SUBMIT, 1, 1, [[["nobody does this"], [pack(1)]]])
    _, number, [[index, failure, reason, _]], existing = peer.receive(ACCEPTED)
    assert (number, index, failure, existing) == (1, 0, "unmatchable", [])
    assert "nobody does this" in reason
    peer.send(CANCEL, 4, [99])
    assert peer.receive(REPLY)[2]["unknown"] == [99]
