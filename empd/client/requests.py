"""Numbered requests until they are answered, and subscriptions to the journal. No I/O."""

from __future__ import annotations

from collections import deque

from empd.client.handle import Request, failure_class
from empd.errors import EmpdError, Refused
from empd.record import Record
from empd.wire.frames import CursorAck, Error, Reset, Rows, Subscribe


class Requests:
    """What was asked and not yet answered. Every kind of request may be asked twice, so that after a reconnect all
    are sent again."""

    def __init__(self) -> None:
        self.waiting: dict[int, Request] = {}
        self._last = 0
        self._unsent: list[Record] = []

    def next_number(self) -> int:
        """A number for a new request."""
        self._last += 1
        return self._last

    def ask(self, number: int, frame: Record) -> Request:
        """Queues a request under its number."""
        request = self.waiting[number] = Request(frame)
        self._unsent.append(frame)
        return request

    def take_unsent(self) -> list[Record]:
        """The requests to send now."""
        if not self._unsent:
            return []
        unsent, self._unsent = self._unsent, []
        return unsent

    def resume(self) -> None:
        """A new connection: everything unanswered goes again."""
        self._unsent = [request.frame for request in self.waiting.values()]

    def withdraw(self, number: int) -> None:
        """Nobody waits for this answer any more: it is not asked for again."""
        request = self.waiting.pop(number, None)
        if request is not None:
            self._unsent = [frame for frame in self._unsent if frame is not request.frame]

    def answered(self, number: int, answer: object) -> None:
        """The daemon's answer; one to a request that was answered before is passed over."""
        request = self.waiting.pop(number, None)
        if request is not None:
            request.end(answer)

    def refused(self, frame: Error) -> None:
        """The daemon refused a request."""
        request = self.waiting.pop(frame.request, None)
        if request is not None:
            request.end(error=Refused(failure_class(frame.failure), frame.message))

    def fail_all(self, error: EmpdError) -> None:
        """The conversation cannot go on."""
        for number in list(self.waiting):
            self.waiting.pop(number).end(error=error)


class Subscription:
    """One consumer's place in the journal: frames that came and were not taken yet."""

    def __init__(self, subscribe: Subscribe) -> None:
        self.subscribe = subscribe
        self.next_seq = subscribe.from_seq
        self.frames: deque[Rows | Reset] = deque()
        self.error: EmpdError | None = None
        self.closed = False

    @property
    def consumer(self) -> str:
        """The consumer's name."""
        return self.subscribe.consumer

    def resumed(self) -> Subscribe:
        """The frame that goes on after the last row that came."""
        asked = self.subscribe
        return Subscribe(asked.consumer, self.next_seq, asked.window, asked.kinds)

    def came(self, frame: Rows | Reset) -> None:
        """Keeps rows in order; after a reconnect the same ones may come again."""
        if isinstance(frame, Reset):
            self.next_seq = frame.first_seq
            self.frames.append(frame)
            return
        fresh = [row for row in frame.rows if row[0] >= self.next_seq]
        if fresh:
            self.next_seq = fresh[-1][0] + 1
            self.frames.append(Rows(frame.consumer, fresh))

    def acknowledgement(self, frame: Rows | Reset) -> CursorAck | None:
        """What tells the daemon that `frame` is processed."""
        return CursorAck(self.consumer, frame.rows[-1][0]) if isinstance(frame, Rows) else None
