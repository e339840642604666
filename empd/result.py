"""The nouns of how a job ends, shared by every room: outcomes, errors, what a reader is told.

`Results` is at once the frame that a client gets and the body of the journal's row, so that it is encoded once.
"""

from __future__ import annotations

import msgspec

from empd.payload import Carried
from empd.record import Record


class JobError(Record):
    """How a job failed. `evidence`: exit cause, last log lines, stacks; bounded."""

    failure: str
    message: str
    evidence: str = ""


class FinishedJob(Record):
    """One ended job. `result`: msgpack bytes or a blob. Times are Unix nanoseconds; `started_ns` 0: never ran. `doubt`:
    what may have been done twice for it."""

    id: int
    outcome: int
    result: Carried | None
    submitted_ns: int
    started_ns: int
    attempts: int
    error: JobError | None = None
    usage: dict[str, float] | None = None
    doubt: str = ""


class FinishedGroup(Record):
    """Ended jobs with the same options."""

    options: msgspec.Raw
    jobs: list[FinishedJob]


class Results(Record, tag=34):
    """Jobs of one session that ended, by `worker` (empty: none ran them) at `at_ns`. Also a journal row's body."""

    session: int
    worker: str
    at_ns: int
    groups: list[FinishedGroup]


class JobStatus(Record):
    """What the broker knows of an unfinished job. `state`: name of `State` in lower case, or `unknown`:
    ask history. Times are Unix nanoseconds, 0: not yet. `reason` says why it waits, `doubt` what may have been done
    twice for it."""

    id: int
    state: str
    service: str = ""
    priority: int = 0
    submitted_ns: int = 0
    started_ns: int = 0
    attempts: int = 0
    worker: str = ""
    epoch: int = 0
    customer_id: str | None = None
    workflow_id: str | None = None
    labels: dict[str, str] | None = None
    reason: str = ""
    error: JobError | None = None
    doubt: str = ""


class DoneJob(Record):
    """A completed job."""

    id: int
    epoch: int
    result: Carried
    usage: dict[str, float] | None = None


class FailedJob(Record):
    """An attempt that failed. `retry`: whether another attempt may help; `cause`: what it is charged to."""

    id: int
    epoch: int
    error: JobError
    retry: bool
    cause: int = 0
    retry_after_s: float | None = None
    usage: dict[str, float] | None = None


class Refusal(Record):
    """Job `index` (within the frame) was not accepted; nothing of it was kept."""

    index: int
    failure: str
    reason: str
    retry_after_s: float | None = None
