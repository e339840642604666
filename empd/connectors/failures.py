"""What may go wrong with a job inside a connector, and what follows from it.

ConnectorError            what went wrong with a job, and what follows from it
├── InvalidInput          the payload is at fault; no other attempt
├── RefusedByService      content policy or the like; no other attempt
├── AuthFailed            credentials; no other attempt
├── NotFound              a model or object that the job names; no other attempt
├── RateLimited           later, uncharged
├── ServiceUnavailable    later, uncharged
├── ServiceTimeout        the service did not answer in time
├── OutOfMemory           host or GPU memory
├── GpuLost               uncharged
├── BadResponse           the service answered nonsense
├── ProcessCrashed        a process that did the work died; charged as a crash
└── StateConflict         the connector's state was changed by another, or this attempt is stale
"""

from __future__ import annotations

from empd.errors import FailureClass
from empd.job import Cause


class ConnectorError(Exception):
    """A job's attempt failed, for a reason that the connector knows.

    `failure` is the class shown everywhere, `retry` whether another attempt may help, `cause` what the attempt is
    charged to. `evidence` is kept with the job. The class attributes are what holds when an argument is left out.
    """

    failure: FailureClass = FailureClass.INTERNAL
    retry: bool = True
    cause: Cause = Cause.JOB_FAULT

    def __init__(
        self,
        message: str,
        *,
        failure: FailureClass | None = None,
        retry: bool | None = None,
        cause: Cause | None = None,
        retry_after_s: float | None = None,
        evidence: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.evidence = evidence
        if failure is not None:
            self.failure = failure
        if retry is not None:
            self.retry = retry
        if cause is not None:
            self.cause = cause


class InvalidInput(ConnectorError):
    """The payload cannot be processed, now or later."""

    failure = FailureClass.INVALID_INPUT
    retry = False


class RefusedByService(ConnectorError):
    """The service will not do this (content policy)."""

    failure = FailureClass.REFUSED
    retry = False


class AuthFailed(ConnectorError):
    """The service does not accept the credentials."""

    failure = FailureClass.AUTH
    retry = False


class NotFound(ConnectorError):
    """What the job names does not exist at the service."""

    failure = FailureClass.NOT_FOUND
    retry = False


class RateLimited(ConnectorError):
    """Too many requests; give `retry_after_s` where the service says it."""

    failure = FailureClass.RATE_LIMITED
    cause = Cause.UPSTREAM


class ServiceUnavailable(ConnectorError):
    """The service cannot be reached, or its circuit is open."""

    failure = FailureClass.UNAVAILABLE
    cause = Cause.UPSTREAM


class ServiceTimeout(ConnectorError):
    """The service did not answer in time."""

    failure = FailureClass.TIMEOUT


class OutOfMemory(ConnectorError):
    """The host's or the GPU's memory was too small."""

    failure = FailureClass.OUT_OF_MEMORY


class GpuLost(ConnectorError):
    """The GPU fell off the bus or reports a fault."""

    failure = FailureClass.GPU_LOST
    cause = Cause.GPU_FAULT


class BadResponse(ConnectorError):
    """The service answered something that is no result."""

    failure = FailureClass.BAD_RESPONSE


class ProcessCrashed(ConnectorError):
    """A process that worked for this job alone died."""

    failure = FailureClass.WORKER_CRASHED
    cause = Cause.WORKER_CRASHED


class StateConflict(ConnectorError):
    """The state has another version than expected, or this attempt is no longer the job's."""


def sayable(text: str) -> str:
    """The text as UTF-8 can carry it, which cannot carry what Python makes of odd bytes in the name of a file."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def describe(error: BaseException) -> str:
    """One line about an exception."""
    text = sayable(str(error)).strip()
    if isinstance(error, ConnectorError):
        return text[:500]
    name = type(error).__name__
    return f"{name}: {text}"[:500] if text else name
