"""What the conversation keeps of one job, one sent frame and one request; the skins' handles stand on these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from empd import job
from empd.errors import EmpdError, FailureClass, JobCancelled, JobDead, JobExpired, JobFailed
from empd.payload import BlobRef, Carried, decode_value
from empd.record import Record
from empd.result import FinishedJob, JobError, JobStatus
from empd.wire import codec
from empd.wire.frames import JobGroup

_FAILURES: dict[int, type[JobFailed]] = {
    job.Outcome.FAILED: JobFailed,
    job.Outcome.CANCELLED: JobCancelled,
    job.Outcome.EXPIRED: JobExpired,
    job.Outcome.DEAD: JobDead,
}
_STATES = {int(outcome): outcome.label for outcome in job.Outcome}
ReadBlob = Callable[[BlobRef], bytes]


class Ending(NamedTuple):
    """What a Results frame says of all jobs of one group: their options' bytes, who ran them, when it was told."""

    options: bytes = b""
    worker: str = ""
    at_ns: int = 0


class Watchers(list[Callable[[Any], None]]):
    """Several watchers of one job."""

    def __call__(self, handle: Any) -> None:
        for watcher in tuple(self):
            watcher(handle)


class Handle(msgspec.Struct, eq=False, gc=False):
    """One job of this client. `gc=False`: there are many, and every cycle through one is cut when the job ends.

    `number` is the job's integer id. It is final once the frame that carries the job is accepted: a daemon whose
    state was wiped gives the session, and so its unacknowledged jobs, a new number.
    """

    number: int
    owner: Any = None  # the skin
    finished: FinishedJob | None = None
    error: EmpdError | None = None
    ending: Ending | None = None
    batch: Batch | None = None  # the Submit frame that carries it, until that is acknowledged
    on_end: Callable[[Any], None] | None = None
    foreign: bool = False  # of another session: the broker does not push its result, so it is asked for
    following: bool = False  # ends with another handle of the same job

    @property
    def id(self) -> str:
        """The job's id, 13 characters."""
        return job.format_id(self.number)

    @property
    def ended(self) -> bool:
        """True when the job has ended, or was refused, as far as this client has heard."""
        return self.finished is not None or self.error is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state}>"

    @property
    def state(self) -> str:
        """What is known without asking: `open`, an outcome's name, or `refused`."""
        if self.finished is not None:
            return _STATES[self.finished.outcome]
        return "open" if self.error is None else "refused"

    def watch(self, callback: Callable[[Any], None]) -> None:
        """Calls `callback(handle)` once when the job ends; at once if it has."""
        if self.ended:
            callback(self)
        elif self.on_end is None:
            self.on_end = callback
        elif isinstance(self.on_end, Watchers):
            self.on_end.append(callback)
        else:
            self.on_end = Watchers((self.on_end, callback))

    def unwatch(self, callback: Callable[[Any], None]) -> None:
        """Takes back a `watch`."""
        if self.on_end is callback:
            self.on_end = None
        elif isinstance(self.on_end, Watchers) and callback in self.on_end:
            self.on_end.remove(callback)

    def end(self) -> None:
        """Tells the watcher."""
        callback, self.on_end = self.on_end, None
        if callback is not None:
            callback(self)

    def failure(self) -> EmpdError | None:
        """The exception that the ended job raises; None when it completed."""
        if self.error is not None or self.finished is None:
            return self.error
        return failure_of(self.finished)

    def value(self, read_blob: ReadBlob) -> Any:
        """The ended job's result, decoded now; raises its failure."""
        failure = self.failure()
        if failure is not None:
            raise failure
        assert self.finished is not None, "value() is for ended jobs"
        return decode_result(self.finished.result, read_blob)

    def final_status(self) -> JobStatus:
        """The ended job in the form of `status()`; `state` is the outcome's name, or `refused`."""
        finished, ending = self.finished, self.ending or Ending()
        if finished is None:
            reason = str(self.error) if self.error is not None else ""
            return JobStatus(id=self.number, state=self.state, reason=reason)
        options = codec.decode_options(ending.options) if ending.options else None
        return JobStatus(
            id=finished.id,
            state=self.state,
            service=options.service if options else "",
            priority=options.priority if options else 0,
            submitted_ns=finished.submitted_ns,
            started_ns=finished.started_ns,
            attempts=finished.attempts,
            worker=ending.worker,
            customer_id=options.customer_id if options else None,
            workflow_id=options.workflow_id if options else None,
            labels=options.labels if options else None,
            error=finished.error,
            doubt=finished.doubt,
        )


class Batch:
    """One Submit frame, from its first job until the daemon has acknowledged it. `sent`: the daemon may have it."""

    __slots__ = ("first", "groups", "handles", "keys", "number", "resent", "sent", "size_bytes")

    def __init__(self, first: int) -> None:
        self.number = 0  # given when it is sealed
        self.first = first
        self.groups: list[JobGroup] = []
        self.handles: list[Handle] = []
        self.keys: set[str] = set()
        self.size_bytes = 0
        self.sent = False
        self.resent = False


class Request:
    """One numbered request until it is answered: `answer`, or `error`."""

    __slots__ = ("answer", "ended", "error", "frame", "on_end")

    def __init__(self, frame: Record) -> None:
        self.frame = frame
        self.answer: Any = None
        self.error: EmpdError | None = None
        self.ended = False
        self.on_end: Callable[[Any], None] | None = None

    def end(self, answer: Any = None, error: EmpdError | None = None) -> None:
        """The daemon has answered."""
        self.answer, self.error, self.ended = answer, error, True
        callback, self.on_end = self.on_end, None
        if callback is not None:
            callback(self)

    def watch(self, callback: Callable[[Any], None]) -> None:
        """Calls `callback(request)` when it is answered; at once if it is."""
        if self.ended:
            callback(self)
        else:
            self.on_end = callback

    def unwatch(self, callback: Callable[[Any], None]) -> None:
        """Takes back a `watch`."""
        self.on_end = None

    def value(self) -> Any:
        """The answer; raises the error that came instead."""
        if self.error is not None:
            raise self.error
        return self.answer


def failure_class(name: str) -> FailureClass:
    """The failure class of this name; a newer daemon's unknown ones count as internal."""
    try:
        return FailureClass(name)
    except ValueError:
        return FailureClass.INTERNAL


def failure_of(finished: FinishedJob) -> JobFailed | None:
    """The exception for a job that ended without a result; None when it completed."""
    kind = _FAILURES.get(finished.outcome)
    if kind is None:
        return None
    error = finished.error or JobError(failure="internal", message="the daemon gave no reason")
    return kind(job.format_id(finished.id), failure_class(error.failure), error.message, error.evidence)


def decode_result(result: Carried | None, read_blob: ReadBlob) -> Any:
    """A result as the connector returned it. Raises BlobMissing, or ValueError when its bytes are damaged."""
    if result is None:
        return None
    if isinstance(result, BlobRef):
        return decode_value(result.encoding, read_blob(result))
    return decode_value("msgpack", result)
