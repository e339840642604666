"""The failure taxonomy and every exception that empd raises on purpose.

EmpdError
├── ConfigError         wrong settings or mapping; lists every problem at once
├── NotRunning          no daemon answers at the endpoint
├── ProtocolError       bytes that are not a frame, or a frame out of turn
├── Refused             the daemon did not accept a request; nothing was changed
├── JobFailed           a job ended without a result; carries its failure class
│   ├── JobCancelled
│   ├── JobExpired
│   └── JobDead         dead-lettered, with the evidence
├── ResultTimeout       `result(timeout)` ran out; the job goes on
├── BlobMissing         a blob id that the arena does not hold (or not in this size)
└── JournalError        the journal cannot be used as it is
    ├── JournalDamaged
    ├── JournalNewer
    └── StateLocked     another daemon owns the state directory
"""

from __future__ import annotations

import enum


class FailureClass(enum.StrEnum):
    """Why a job (or a request) failed. The same names in logs, metrics, API and wire."""

    INVALID_INPUT = "invalid_input"
    REFUSED = "refused"
    AUTH = "auth"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    GPU_LOST = "gpu_lost"
    WORKER_CRASHED = "worker_crashed"
    WORKER_HUNG = "worker_hung"
    HOST_LOST = "host_lost"
    BAD_RESPONSE = "bad_response"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNMATCHABLE = "unmatchable"
    INTERNAL = "internal"


class EmpdError(Exception):
    """Base of all errors that a user of empd is meant to see: one line that says what to do."""


class ConfigError(EmpdError):
    """Wrong configuration.

    `problems` holds one line for each mistake: `FILE: KEY.PATH: what is wrong; what is accepted`.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class NotRunning(EmpdError):
    """No daemon answers at the endpoint."""


class ProtocolError(EmpdError):
    """The peer sent bytes that are not a frame of this protocol, or a frame out of turn."""


class Refused(EmpdError):
    """A request was refused before it changed anything.

    `retry_after_s` is set where the same request may be accepted later.
    """

    def __init__(self, failure: FailureClass, reason: str, retry_after_s: float | None = None) -> None:
        self.failure = failure
        self.reason = reason
        self.retry_after_s = retry_after_s
        super().__init__(f"{failure}: {reason}")


class JobFailed(EmpdError):
    """The job ended without a result."""

    def __init__(self, job_id: str, failure: FailureClass, message: str, evidence: str = "") -> None:
        self.job_id = job_id
        self.failure = failure
        self.message = message
        self.evidence = evidence
        super().__init__(f"job {job_id}: {failure}: {message}")


class JobCancelled(JobFailed):
    """The job was cancelled, and its work has stopped."""


class JobExpired(JobFailed):
    """The job's queue or total time-out passed before it was done."""


class JobDead(JobFailed):
    """The job was dead-lettered; `empd retry` gives it another chance."""


class ResultTimeout(EmpdError, TimeoutError):
    """The result was not there in time; the job goes on."""


class BlobMissing(EmpdError):
    """The arena does not hold this blob."""


class JournalError(EmpdError):
    """The journal cannot be used."""


class JournalDamaged(JournalError):
    """A row's checksum, or the gapless order of rows, does not hold."""


class JournalNewer(JournalError):
    """The journal was written by a newer empd; nothing was touched."""


class StateLocked(JournalError):
    """Another daemon holds the state directory."""
