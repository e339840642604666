"""The event stream: journal rows to subscribers, from any row on, at their pace."""

from __future__ import annotations

from collections import deque

from empd.broker.peers import Router
from empd.clock import NS_PER_MS
from empd.payload import FRAME_BYTES_MAX
from empd.store.journal import Row, SqliteJournal
from empd.wire import frames
from empd.wire.codec import encode

_READ_ROWS = 128
_GATHER_NS = 25 * NS_PER_MS
"""A consumer is fed at most so often, unless there is much for it: what one job causes would cost it a frame, a
transaction and an acknowledgement of its own."""
_GATHER_ROWS = 64
_REFUSED_NS = 100 * NS_PER_MS
"""A consumer that did not read what it is owed is tried again after this."""
_FRAME_BODY_BYTES = FRAME_BYTES_MAX // 2
_RECENT_ROWS = 2 * _GATHER_ROWS
_RECENT_BYTES = 4 << 20
WINDOW_MAX = 256
WINDOW_BYTES_MAX = 4 << 20


class Subscriber:
    """One subscription. `next_seq`: the next row to look at; `ahead`: (last row, bytes) of frames not yet acknowledged,
    `ahead_bytes` of them together."""

    def __init__(self, identity: bytes, frame: frames.Subscribe) -> None:
        self.identity = identity
        self.consumer = frame.consumer
        self.next_seq = max(frame.from_seq, 1)
        self.window = max(1, min(frame.window, WINDOW_MAX))
        self.kinds = frozenset(frame.kinds)
        self.ahead: deque[tuple[int, int]] = deque()
        self.ahead_bytes = 0
        self.acknowledged = self.next_seq - 1
        self.fed_ns = 0
        self.refused_ns = 0

    def wants(self, row: Row) -> bool:
        """Whether the row is of a kind asked for."""
        return not self.kinds or row.kind in self.kinds

    def acknowledge(self, seq: int) -> None:
        """The consumer has processed rows up to `seq`."""
        while self.ahead and self.ahead[0][0] <= seq:
            self.ahead_bytes -= self.ahead.popleft()[1]
        self.acknowledged = max(self.acknowledged, min(seq, self.next_seq - 1))

    @property
    def has_room(self) -> bool:
        """Whether another frame may be sent before the next acknowledgement."""
        return len(self.ahead) < self.window and self.ahead_bytes < WINDOW_BYTES_MAX

    def processed_seq(self) -> int:
        """All rows up to here are processed, or of no interest to the consumer."""
        return self.acknowledged if self.ahead else self.next_seq - 1


class Stream:
    """All subscriptions."""

    def __init__(self, router: Router, journal: SqliteJournal) -> None:
        self._router = router
        self._journal = journal
        self._subscribers: dict[tuple[bytes, str], Subscriber] = {}
        self._recent: list[Row] = []
        self._recent_bytes = 0

    def subscribe(self, identity: bytes, frame: frames.Subscribe) -> None:
        """Begins, or begins anew, a consumer's subscription."""
        subscriber = Subscriber(identity, frame)
        self._reset(subscriber)
        if frame.consumer:  # a named consumer has one cursor, and so one subscription
            for key in [key for key in self._subscribers if key[1] == frame.consumer]:
                del self._subscribers[key]
        self._subscribers[identity, frame.consumer] = subscriber
        self._recent, self._recent_bytes = [], 0  # kept for the others: this one may want more of it

    def acknowledge(self, identity: bytes, frame: frames.CursorAck) -> None:
        """A consumer says how far it is."""
        subscriber = self._subscribers.get((identity, frame.consumer))
        if subscriber is not None:
            subscriber.acknowledge(frame.seq)

    def cursors(self) -> dict[str, int]:
        """How far each connected consumer is."""
        last_seq = self._journal.last_seq
        return {name: min(each.processed_seq(), last_seq) for (_, name), each in self._subscribers.items() if name}

    def forget(self, identity: bytes) -> None:
        """This connection says no more."""
        for key in [key for key in self._subscribers if key[0] == identity]:
            del self._subscribers[key]

    def feed(self, committed: list[Row], mono_ns: int) -> int | None:
        """Sends what subscribers have room for; `committed` are the rows of this pass. Returns the steady time at
        which there is more to send; None when all have everything, or no room."""
        wanted_ns: int | None = None
        if committed:
            self._keep(committed)
        behind = False
        for key, subscriber in list(self._subscribers.items()):
            waiting = self._journal.last_seq + 1 - subscriber.next_seq
            behind |= waiting > 0
            if not waiting or not subscriber.has_room:
                continue
            due_ns = max(subscriber.fed_ns + _GATHER_NS, subscriber.refused_ns + _REFUSED_NS)
            if due_ns <= mono_ns or (waiting >= _GATHER_ROWS and not subscriber.refused_ns):
                due_ns = mono_ns
                if self._feed_one(subscriber):
                    subscriber.refused_ns = 0
                    if subscriber.ahead:
                        subscriber.fed_ns = mono_ns
                elif self._router.gone:
                    del self._subscribers[key]
                    continue
                else:
                    # It does not read what it is owed: it goes on where it is as soon as it does.
                    subscriber.refused_ns = mono_ns
                    due_ns = mono_ns + _REFUSED_NS
            if subscriber.next_seq <= self._journal.last_seq and subscriber.has_room:
                wanted_ns = due_ns if wanted_ns is None else min(wanted_ns, due_ns)
        if not behind:
            self._recent, self._recent_bytes = [], 0
        return wanted_ns

    def _keep(self, committed: list[Row]) -> None:
        """Rows are fed some passes after they were committed. Until then they are kept, within bounds and without
        gaps: to read them back from the journal would cost as much as all the rest of it. What nobody wants (history
        has no use for payloads) leaves only its place."""
        kinds: set[int] = set()
        for subscriber in self._subscribers.values():
            if not subscriber.kinds:
                break
            kinds |= subscriber.kinds
        else:
            committed = [row if row.kind in kinds else Row(*row[:4], b"") for row in committed]
        size = sum([len(row.body) for row in committed])
        recent = self._recent
        if (
            recent
            and recent[-1].seq + 1 == committed[0].seq  # else a trim has written in between
            and len(recent) + len(committed) <= _RECENT_ROWS
            and self._recent_bytes + size <= _RECENT_BYTES
        ):
            recent += committed
            self._recent_bytes += size
        else:
            self._recent, self._recent_bytes = committed, size

    def _feed_one(self, subscriber: Subscriber) -> bool:
        if not self._reset(subscriber):
            return False
        recent = self._recent
        if recent and recent[0].seq <= subscriber.next_seq <= recent[-1].seq:
            rows = recent[subscriber.next_seq - recent[0].seq :]
        else:
            rows = self._journal.read_from(subscriber.next_seq, _READ_ROWS)
        batch: list[Row] = []
        size = 0
        for row in rows:
            if subscriber.wants(row):
                if batch and size + len(row.body) > _FRAME_BODY_BYTES:
                    if not self._send(subscriber, batch):
                        return False
                    batch, size = [], 0
                    if not subscriber.has_room:
                        return True
                batch.append(row)
                size += len(row.body) + 32
            elif not batch:
                subscriber.next_seq = row.seq + 1
        if batch and not self._send(subscriber, batch):
            return False
        if rows:
            subscriber.next_seq = rows[-1].seq + 1
        return True

    def _reset(self, subscriber: Subscriber) -> bool:
        """Tells a subscriber whose next row is cut off where the rows begin now. False: the frame was refused."""
        first_seq = self._journal.first_seq
        if subscriber.next_seq < first_seq:
            if not self._router.send(subscriber.identity, encode(frames.Reset(subscriber.consumer, first_seq))):
                return False
            subscriber.next_seq = first_seq
        return True

    def _send(self, subscriber: Subscriber, batch: list[Row]) -> bool:
        data = encode(frames.Rows(subscriber.consumer, list(batch)))
        if not self._router.send(subscriber.identity, data):
            return False
        subscriber.next_seq = batch[-1].seq + 1
        subscriber.ahead.append((batch[-1].seq, len(data)))
        subscriber.ahead_bytes += len(data)
        return True
