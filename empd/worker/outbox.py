"""Outcomes of attempts on their way to the broker: collected, sent in frames, kept until they are settled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from empd.payload import Carried
from empd.wire.frames import Abandoned, Done, DoneJob, FailedJob, Frame

JOBS_PER_FRAME_MAX = 256
FRAME_BYTES_MAX = 700 * 1024
_JOB_BYTES = 32  # ids, epoch and array heads

Claim = tuple[int, int]


class Outbox:
    """One worker's outcomes. `send` takes a frame and tells whether it left.

    A `Done` frame keeps its number for ever and is sent again by `resend`, until `settle` names it.
    """

    def __init__(self, send: Callable[[Frame], bool], call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._send = send
        self._call_soon = call_soon
        self._number = 0
        self._unsettled: deque[Done] = deque()
        self._done: list[DoneJob] = []
        self._failed: list[FailedJob] = []
        self._cancelled: list[Claim] = []
        self._abandoned: list[Claim] = []
        self._count = 0
        self._bytes = 0
        self._scheduled = False
        self.open = False
        """Whether outcomes may leave: the broker has answered this connection's Hello."""

        self.watched: dict[Claim, Callable[[bool], None]] = {}
        """Who is to be told when a completed job's outcome is durable (True), or not wanted (False)."""

    def completed(self, claim: Claim, result: Carried, usage: dict[str, float] | None) -> None:
        """A job is done."""
        size = len(result) if type(result) is bytes else 0
        self._room(size)
        self._done.append(DoneJob(claim[0], claim[1], result, usage))

    def failed(self, job: FailedJob) -> None:
        """An attempt failed."""
        self._room(4 * (len(job.error.message) + len(job.error.evidence)))
        self._failed.append(job)

    def cancelled(self, claim: Claim) -> None:
        """A job has stopped, as it was told."""
        self._room(0)
        self._cancelled.append(claim)

    def abandoned(self, claim: Claim) -> None:
        """A job that was not this worker's has stopped."""
        self._abandoned.append(claim)
        self._schedule()

    def flush(self) -> None:
        """Sends what was collected."""
        self._scheduled = False
        if self._count:
            self._number += 1
            frame = Done(self._number, self._done, self._failed, self._cancelled)
            self._done, self._failed, self._cancelled = [], [], []
            self._count = self._bytes = 0
            self._unsettled.append(frame)
            if self.open:
                self._send(frame)
        if self._abandoned and self.open:
            self._send(Abandoned(self._abandoned))
            self._abandoned = []

    def settle(self, number: int) -> None:
        """Frames up to `number` are durable."""
        unsettled = self._unsettled
        while unsettled and unsettled[0].number <= number:
            frame = unsettled.popleft()
            if self.watched:
                self._tell({(job.id, job.epoch) for job in frame.done}, counts=True)

    def resend(self) -> None:
        """Sends again what is not settled (after a reconnect), and what was collected meanwhile."""
        for frame in self._unsettled:
            self._send(frame)
        self.flush()

    def drop(self, claims: set[Claim]) -> set[Claim]:
        """Forgets outcomes that the broker does not want; returns those it had."""
        found = claims & set(self.held())
        if found:
            for done, failed, cancelled in self._lists():
                done[:] = [job for job in done if (job.id, job.epoch) not in found]
                failed[:] = [job for job in failed if (job.id, job.epoch) not in found]
                cancelled[:] = [claim for claim in cancelled if claim not in found]
            self._tell(found, counts=False)
        return found

    def held(self) -> Iterable[Claim]:
        """Claims whose outcome is not settled."""
        for done, failed, cancelled in self._lists():
            yield from ((job.id, job.epoch) for job in done)
            yield from ((job.id, job.epoch) for job in failed)
            yield from cancelled

    @property
    def empty(self) -> bool:
        """Nothing is left to be sent or settled."""
        return not (self._count or self._unsettled or self._abandoned)

    def _tell(self, claims: set[Claim], *, counts: bool) -> None:
        for claim in claims & self.watched.keys():
            self.watched.pop(claim)(counts)

    def _room(self, size: int) -> None:
        size += _JOB_BYTES
        if self._count >= JOBS_PER_FRAME_MAX or (self._count and self._bytes + size > FRAME_BYTES_MAX):
            self.flush()
        self._count += 1
        self._bytes += size
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._flush_later)

    def _flush_later(self) -> None:
        if self._scheduled:
            self.flush()

    def _lists(self) -> Iterator[tuple[list[DoneJob], list[FailedJob], list[Claim]]]:
        for frame in self._unsettled:
            yield frame.done, frame.failed, frame.cancelled
        yield self._done, self._failed, self._cancelled
