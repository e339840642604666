"""Which message belongs to which job, when many jobs share one connection. No I/O, no clock.

A message is delivered by the id that it names and by nothing else: what names no id, or an unknown one, reaches no
job. The end of a job that nobody waits for yet is kept (bounded), because a fast service may answer before it is
known under which id; the end of a job that has already ended is a duplicate and is dropped.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple


class MessageType(enum.StrEnum):
    """What a message means, whatever the service calls it."""

    JOB_SUBMIT = "job_submit"  # the service took the job
    JOB_PROGRESS = "job_progress"
    JOB_COMPLETE = "job_complete"
    JOB_ERROR = "job_error"
    JOB_CANCELLED = "job_cancelled"
    HEARTBEAT = "heartbeat"
    CONNECTION = "connection"  # about the connection, not about a job
    UNKNOWN = "unknown"


ENDS = frozenset({MessageType.JOB_COMPLETE, MessageType.JOB_ERROR, MessageType.JOB_CANCELLED})
"""Of these a job gets exactly one."""


class Delivery(NamedTuple):
    """One message for one job; `size` is that of its frame in bytes."""

    kind: MessageType
    message: Any
    size: int = 0


class Fate(enum.StrEnum):
    """What became of a message."""

    DELIVERED = "delivered"
    EARLY = "early"  # kept until its job is known
    DUPLICATE = "duplicate"  # of a job that has ended
    STRAY = "stray"  # of a job that is not ours, or of none


class Mailbox:
    """What has arrived for one job and was not taken yet.

    When it is full the oldest message that ends nothing goes first, so that a slow reader loses progress and never
    the end. `wake` is called whenever there is something to look at.
    """

    def __init__(self, key: str, messages_max: int, wake: Callable[[], None]) -> None:
        self.keys = [key]
        self.dropped = 0
        self.ended = False
        self._error: Exception | None = None
        self._messages: deque[Delivery] = deque(maxlen=messages_max)
        self._end: Delivery | None = None
        self._wake = wake

    def put(self, delivery: Delivery) -> bool:
        """Adds a message; False when the end has been in here, after which nothing counts."""
        if self.ended:
            return False
        if delivery.kind in ENDS:
            self._end, self.ended = delivery, True
        else:
            self.dropped += len(self._messages) == self._messages.maxlen
            self._messages.append(delivery)
        self._wake()
        return True

    def fail(self, error: Exception) -> None:
        """The job cannot go on; an end that has already come stays the truth."""
        if not self.ended:
            self._error, self.ended = error, True
            self._wake()

    def take(self) -> Delivery | None:
        """The oldest message, the end last; None when there is none. Raises what `fail` was given."""
        if self._messages:
            return self._messages.popleft()
        if self._error is not None:
            raise self._error
        end, self._end = self._end, None
        return end


class Correlation:
    """The mailboxes of all jobs on one connection, by each id that the service may call them."""

    def __init__(self, *, messages_max: int, early_max: int, early_bytes_max: int) -> None:
        self._messages_max = messages_max
        self._early_max = early_max
        self._early_bytes_max = early_bytes_max
        self._boxes: dict[str, Mailbox] = {}
        self._early: OrderedDict[str, Delivery] = OrderedDict()
        self._early_bytes = 0
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len({id(box) for box in self._boxes.values()})

    @property
    def early_bytes(self) -> int:
        """Bytes of ends kept for jobs that nobody waits for."""
        return self._early_bytes

    @property
    def early(self) -> list[str]:
        """The ids of ends kept for jobs that nobody waits for, oldest first."""
        return list(self._early)

    @property
    def boxes(self) -> list[Mailbox]:
        """Every mailbox once, oldest first."""
        return list({id(box): box for box in self._boxes.values()}.values())

    def expect(self, key: str, wake: Callable[[], None]) -> Mailbox:
        """A mailbox for a job known as `key`. Raises ValueError when another job has that id."""
        box = Mailbox(key, self._messages_max, wake)
        self._open(key, box)
        return box

    def alias(self, box: Mailbox, key: str) -> None:
        """The service calls this job `key` too. Raises ValueError when another job has that id."""
        if self._boxes.get(key) is not box:
            self._open(key, box)
            box.keys.append(key)

    def _open(self, key: str, box: Mailbox) -> None:
        if key in self._boxes:
            raise ValueError(f"two jobs with the id {key!r}")
        self._boxes[key] = box
        self._ended.pop(key, None)
        early = self._early.pop(key, None)
        if early is not None:
            self._early_bytes -= early.size
            box.put(early)

    def deliver(self, key: str | None, delivery: Delivery) -> Fate:
        """Puts a message where it belongs."""
        if key is None:
            return Fate.STRAY
        box = self._boxes.get(key)
        if box is not None:
            return Fate.DELIVERED if box.put(delivery) else Fate.DUPLICATE
        if key in self._ended or key in self._early:
            return Fate.DUPLICATE
        if delivery.kind not in ENDS or delivery.size > self._early_bytes_max:
            return Fate.STRAY
        self._early[key] = delivery
        self._early_bytes += delivery.size
        while len(self._early) > self._early_max or self._early_bytes > self._early_bytes_max:
            _, oldest = self._early.popitem(last=False)
            self._early_bytes -= oldest.size
        return Fate.EARLY if key in self._early else Fate.STRAY

    def forget(self, box: Mailbox) -> None:
        """The job is over: what still comes for it is a duplicate."""
        for key in box.keys:
            if self._boxes.get(key) is box:
                del self._boxes[key]
                self._ended[key] = None
        while len(self._ended) > self._early_max:
            self._ended.popitem(last=False)

    def fail_all(self, error: Exception) -> None:
        """No job can go on."""
        for box in self.boxes:
            box.fail(error)
