"""From an exception to what follows: the class of failure, whether to try again, and what it is charged to.

By type, never by words in a message.
"""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import NamedTuple

from empd.asset import AssetFailed
from empd.connectors.failures import ConnectorError, describe
from empd.errors import BlobMissing, FailureClass, Refused
from empd.job import Cause

MESSAGE_CHARS_MAX = 2_000
EVIDENCE_CHARS_MAX = 8_000
_TRACEBACK_FRAMES_MAX = 12

# Libraries that a worker must not import, named by their exception's module root and name.
_BY_NAME: dict[tuple[str, str], FailureClass] = {
    ("torch", "OutOfMemoryError"): FailureClass.OUT_OF_MEMORY,
    ("cupy", "OutOfMemoryError"): FailureClass.OUT_OF_MEMORY,
    ("numpy", "_ArrayMemoryError"): FailureClass.OUT_OF_MEMORY,
    ("torch", "AcceleratorError"): FailureClass.GPU_LOST,
}

_BY_TYPE: tuple[tuple[type[BaseException], FailureClass], ...] = (
    (MemoryError, FailureClass.OUT_OF_MEMORY),
    (TimeoutError, FailureClass.TIMEOUT),
    (ConnectionError, FailureClass.UNAVAILABLE),
)

_CAUSES = {FailureClass.GPU_LOST: Cause.GPU_FAULT}


class Verdict(NamedTuple):
    """What a failed attempt means."""

    failure: FailureClass
    message: str
    retry: bool
    cause: Cause
    retry_after_s: float | None
    evidence: str


def judge(error: BaseException) -> Verdict:
    """The verdict on an exception that ended an attempt."""
    if isinstance(error, ConnectorError):
        message = error.message[:MESSAGE_CHARS_MAX]
        evidence = error.evidence or (_trace(error) if error.__cause__ is not None else "")
        evidence = evidence[-EVIDENCE_CHARS_MAX:]
        return Verdict(error.failure, message, error.retry, error.cause, error.retry_after_s, evidence)
    if isinstance(error, Refused):
        # This host has no room now: nobody's fault, and another attempt may meet room.
        return Verdict(error.failure, error.reason, True, Cause.UPSTREAM, error.retry_after_s, "")
    if isinstance(error, AssetFailed):
        cause = Cause.UPSTREAM if error.upstream else Cause.JOB_FAULT
        return Verdict(error.failure, error.message[:MESSAGE_CHARS_MAX], error.retry, cause, error.retry_after_s, "")
    if isinstance(error, BlobMissing):
        return Verdict(FailureClass.NOT_FOUND, str(error), False, Cause.JOB_FAULT, None, "")
    failure = _classify(error)
    cause = _CAUSES.get(failure, Cause.JOB_FAULT)
    return Verdict(failure, describe(error)[:MESSAGE_CHARS_MAX], True, cause, None, _trace(error))


def _classify(error: BaseException) -> FailureClass:
    for kind in type(error).__mro__:
        named = _BY_NAME.get((kind.__module__.partition(".")[0], kind.__name__))
        if named is not None:
            return named
    for kind, failure in _BY_TYPE:
        if isinstance(error, kind):
            return failure
    return FailureClass.INTERNAL


def _trace(error: BaseException) -> str:
    place = _outside(error.__traceback__) or error.__traceback__
    lines = traceback.format_exception(type(error), error, place, limit=-_TRACEBACK_FRAMES_MAX)
    return "".join(lines)[-EVIDENCE_CHARS_MAX:]


def _outside(place: TracebackType | None) -> TracebackType | None:
    """The calls from the first one on that is not the daemon's own; None where all are."""
    while place is not None and str(place.tb_frame.f_globals.get("__name__")).partition(".")[0] == "empd":
        place = place.tb_next
    return place
