"""A finished job as the history keeps it, and its form in the table `finished`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from empd.job import JobOptions, Outcome
from empd.payload import BlobRef
from empd.result import FinishedJob

COLUMNS = "position, id, finished_ns, outcome, service, worker, customer_id, workflow_id, labels, outline, result"
_INSERT_ROWS_MAX = 64
"""Rows in one statement: to begin and end one costs as much as to write two rows."""

_SIGN = 1 << 63
_WRAP = 1 << 64


class FinishedRecord(msgspec.Struct, gc=False, kw_only=True):
    """How one job ended. Times are wall-clock nanoseconds, 0 where it never came to that.

    The result is either inline (`result`, in `encoding`) or in the arena (`blob`). `result_expired` is only set on
    the way out: the result had been kept for `result_keep_s` and is gone.
    """

    id: int
    outcome: int
    service: str
    finished_ns: int
    submitted_ns: int = 0
    started_ns: int = 0
    result: bytes | None = None
    encoding: str = "msgpack"
    blob: BlobRef | None = None
    failure: str = ""
    message: str = ""
    evidence: str = ""
    attempts: int = 0
    priority: int = 0
    worker: str = ""
    customer_id: str = ""
    workflow_id: str = ""
    labels: dict[str, str] = {}
    usage: dict[str, float] = {}
    doubt: str = ""
    result_expired: bool = False


class Common(NamedTuple):
    """The columns that jobs which ended together share; NULL where there is nothing to say."""

    finished_ns: int
    service: str
    worker: str | None
    customer_id: str | None
    workflow_id: str | None
    labels: str | None


Own = tuple[int, int, bytearray, bytearray | None]
"""The columns that each job has for itself: id, outcome, outline, result. None is `bytes`: for each of those sqlite3
looks for an adapter, which takes longer than to copy it."""

_OWN_COLUMNS = 4


class Ended(NamedTuple):
    """Jobs that ended together, in the form of the table."""

    common: Common
    jobs: list[Own]


class _Outline(NamedTuple):
    submitted_ns: int
    started_ns: int
    attempts: int
    priority: int
    encoding: str
    failure: str
    message: str
    evidence: str
    usage: dict[str, float] | None
    blob: BlobRef | None
    doubt: str = ""


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Outline).decode
_labels_out = msgspec.json.Encoder(order="sorted").encode
_labels_in = msgspec.json.Decoder(dict[str, str]).decode


def to_signed(job_id: int) -> int:
    """An unsigned 64-bit id as SQLite can hold it."""
    return job_id - _WRAP if job_id >= _SIGN else job_id


def to_stored(jobs: list[FinishedJob], options: JobOptions, worker: str, finished_ns: int) -> Ended:
    """Jobs with the same options that `worker` ended at `finished_ns`."""
    labels = _labels_out(options.labels).decode() if options.labels else None
    common = Common(
        finished_ns, options.service, worker or None, options.customer_id or None, options.workflow_id or None, labels
    )
    priority = options.priority
    return Ended(common, [_own(job, priority) for job in jobs])


def _own(job: FinishedJob, priority: int) -> Own:
    error, result = job.error, job.result
    failure = ("", "", "") if error is None else (error.failure, error.message, error.evidence)
    blob = result if type(result) is BlobRef else None
    inline = bytearray(result) if type(result) is bytes else None
    doubt = job.doubt
    outline = (job.submitted_ns, job.started_ns, job.attempts, priority, "msgpack", *failure, job.usage, blob, doubt)
    return to_signed(job.id), job.outcome, bytearray(_pack(outline)), inline


def inserts(first: int, ended: Ended) -> Iterator[tuple[str, list[Any]]]:
    """Statements with their parameters that write the jobs as rows from position `first` on."""
    begin, jobs = 0, ended.jobs
    while left := len(jobs) - begin:
        count = min(1 << left.bit_length() - 1, _INSERT_ROWS_MAX)  # few numbers, so that statements are found again
        yield _insert(count), [first + begin, *ended.common, *chain.from_iterable(jobs[begin : begin + count])]
        begin += count


@functools.cache
def _insert(count: int) -> str:
    shared = 1 + len(Common._fields)
    rows = (
        f"(?1 + {index}, ?{own}, ?2, ?{own + 1}, ?3, ?4, ?5, ?6, ?7, ?{own + 2}, ?{own + 3})"
        for index, own in enumerate(range(shared + 1, shared + 1 + count * _OWN_COLUMNS, _OWN_COLUMNS))
    )
    return f"REPLACE INTO finished ({COLUMNS}) VALUES {', '.join(rows)}"


def from_stored(row: Any, results_dropped: int) -> FinishedRecord:
    """The record of a row (columns as in COLUMNS). Results up to position `results_dropped` are gone.

    Raises msgspec.MsgspecError when the row is not as it was written.
    """
    position, job_id, finished_ns, outcome, service, worker, customer_id, workflow_id, labels, outline, result = row
    rest = _unpack(outline)
    gone = position <= results_dropped
    return FinishedRecord(
        id=job_id if job_id >= 0 else job_id + _WRAP,
        outcome=outcome,
        service=service,
        finished_ns=finished_ns,
        submitted_ns=rest.submitted_ns,
        started_ns=rest.started_ns,
        result=None if gone else result,
        encoding=rest.encoding,
        blob=None if gone else rest.blob,
        failure=rest.failure,
        message=rest.message,
        evidence=rest.evidence,
        attempts=rest.attempts,
        priority=rest.priority,
        worker=worker or "",
        customer_id=customer_id or "",
        workflow_id=workflow_id or "",
        labels=_labels_in(labels) if labels else {},
        usage=rest.usage or {},
        doubt=rest.doubt,
        result_expired=gone and outcome == Outcome.COMPLETED,
    )


def outline_blob(outline: bytes) -> BlobRef | None:
    """The arena's blob that a row refers to."""
    return _unpack(outline).blob
