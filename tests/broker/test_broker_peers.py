"""Peers that do not read: what they are owed is bounded in bytes, and they are served again when they have read."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from box import wait_until

from empd.broker import peers
from empd.broker.peers import BACKLOG_BYTES_MAX, RECEIVE_BYTES_MAX, Router
from empd.payload import FRAME_BYTES_MAX

MIB = 1 << 20


class Pair:
    """A router, and a peer that reads only when told to."""

    def __init__(self, directory: Path) -> None:
        self.here: zmq.Context[Any] = zmq.Context()
        self.there: zmq.Context[Any] = zmq.Context()
        self.router = Router(self.here, f"ipc://{directory}/socket")
        self.dealers: list[zmq.Socket[Any]] = []

    def peer(self, identity: bytes) -> zmq.Socket[Any]:
        dealer = self.there.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.RCVBUF, 65_536), (zmq.IDENTITY, identity)):
            dealer.setsockopt(option, value)
        dealer.connect(self.router.endpoint)
        dealer.send(b"hello")
        wait_until(self.router.receive, "the peer's first frame")
        self.dealers.append(dealer)
        return dealer

    def close(self) -> None:
        for dealer in self.dealers:
            dealer.close()
        self.router.close()
        self.here.destroy(linger=0)
        self.there.destroy(linger=0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("size", [20_000, 300_000, FRAME_BYTES_MAX])
def test_a_peer_that_does_not_read_is_owed_a_bounded_number_of_bytes(pair: Pair, size: int) -> None:
    dealer, other = pair.peer(b"silent"), pair.peer(b"other")
    sent = 0
    while pair.router.send(b"silent", bytes(size)):
        sent += size
        assert sent < 16 * MIB, "nothing ends what is sent to a peer that does not read"
    assert sent >= BACKLOG_BYTES_MAX - MIB, "a peer that is only slow gets that much"
    assert pair.router.send(b"other", b"x" * size), "another peer is served"
    assert len(other.recv()) == size
    received = 0
    while received < sent:
        assert dealer.poll(30_000)
        received += len(dealer.recv())
    wait_until(lambda: pair.router.send(b"silent", bytes(size)), "the peer that has read to be served again")
    assert len(dealer.recv()) == size


def test_what_came_while_something_was_sent_is_found(pair: Pair) -> None:
    """Sending may take in the word that a frame has come, and then no descriptor tells of it."""
    dealer = pair.peer(b"both")
    [descriptor] = pair.router.descriptors
    told = select.poll()
    told.register(descriptor, select.POLLIN)
    for number in range(50):
        assert pair.router.receive() == [], "found empty"
        assert not pair.router.ready()
        dealer.send(b"%d" % number)
        assert told.poll(30_000), "an empty socket's descriptor tells of the next frame"
        pair.router.send(b"both", b"answer")
        assert pair.router.ready() or told.poll(0)
        assert pair.router.receive() == [(b"both", b"%d" % number)]


def test_a_message_of_other_than_two_parts_is_an_empty_frame(pair: Pair) -> None:
    dealer = pair.peer(b"parts")
    dealer.send_multipart([b"one", b"two", b"three"])
    dealer.send(b"four")
    found: list[tuple[bytes, bytes]] = []

    def received() -> bool:
        found.extend(pair.router.receive())
        return len(found) == 2

    wait_until(received, "both messages")
    assert found == [(b"parts", b""), (b"parts", b"four")]


def test_what_is_received_at_once_is_bounded_in_bytes(pair: Pair) -> None:
    dealer = pair.peer(b"many")
    sent = [number.to_bytes(1, "little") * (MIB - 100) for number in range(20)]
    for data in sent:
        dealer.send(data)
    portions: list[list[tuple[bytes, bytes]]] = []

    def received() -> bool:
        portions.append(pair.router.receive())
        return sum(map(len, portions)) == len(sent)

    wait_until(received, "all of them")
    assert [data for portion in portions for _, data in portion] == sent
    for portion in portions:
        assert sum(len(data) for _, data in portion[:-1]) < RECEIVE_BYTES_MAX


def test_a_peer_that_reads_is_never_refused(pair: Pair) -> None:
    dealer = pair.peer(b"reader")
    for _ in range(100):
        assert pair.router.send(b"reader", bytes(MIB))
        assert len(dealer.recv()) == MIB


class Late:
    """A tracker that learns only when somebody waits that its frame is sent, or never."""

    def __init__(self, ever: bool) -> None:
        self.ever = ever
        self.done = False
        self.waits = 0

    def wait(self, timeout: float) -> None:
        self.waits += 1
        if not self.ever:
            raise zmq.NotDone
        self.done = True


def test_a_transport_that_is_late_to_tell_what_it_has_sent_makes_no_peer_slow() -> None:
    backlog = peers.Backlog()
    late, never = Late(ever=True), Late(ever=False)
    for tracker in (late, never):
        backlog.count(BACKLOG_BYTES_MAX)
        backlog.mark(cast("Any", tracker))
        assert backlog.is_full() is (tracker is never)
    assert late.waits == 1
    assert backlog.is_full()
    assert never.waits == 1, "a peer that does not read costs such a pause once"


def test_peers_that_come_and_go_take_no_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_BACKLOGS_KEPT", 8)
    silent = pair.peer(b"silent")
    while pair.router.send(b"silent", bytes(MIB)):
        pass
    for number in range(50):
        identity = b"peer%d" % number
        dealer = pair.peer(identity)
        assert pair.router.send(identity, b"x")
        assert dealer.recv() == b"x"
        dealer.close()
    assert len(pair.router._backlogs) <= 9
    more = 0  # what the transport has taken off meanwhile
    while pair.router.send(b"silent", bytes(MIB)):
        more += 1
    assert more <= 4, "what it is owed is not forgotten"
    silent.close()
