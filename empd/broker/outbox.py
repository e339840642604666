"""What a pass wants to send. Nothing in it leaves before the pass's facts are committed."""

from __future__ import annotations

from empd.broker.peers import Router
from empd.record import Record
from empd.wire.codec import encode


class Outbox:
    """Frames for the peers of one router, in order."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._frames: list[tuple[bytes, bytes]] = []

    def put(self, identity: bytes, frame: Record | bytes) -> None:
        """Queues a frame."""
        self._frames.append((identity, frame if isinstance(frame, bytes) else encode(frame)))

    def has_room(self, identity: bytes) -> bool:
        """Whether the peer has read most of what it was sent before."""
        return self._router.has_room(identity)

    def flush(self) -> set[bytes]:
        """Sends everything; returns the peers that did not take theirs."""
        if not self._frames:
            return set()
        send = self._router.send
        missed = {identity for identity, frame in self._frames if not send(identity, frame)}
        self._frames.clear()
        return missed
