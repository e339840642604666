"""A finished job as the history keeps it, and its form in the table `finished`."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from empd.job import Outcome
from empd.payload import BlobRef

COLUMNS = "position, id, finished_ns, outcome, service, worker, customer_id, workflow_id, labels, outline, result"
INSERT = f"REPLACE INTO finished ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

StoredRow = tuple[int, int, int, int, str, str | None, str | None, str | None, str | None, bytes, bytes | None]

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
    encoding: str = "bytes"
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


def to_stored(position: int, record: FinishedRecord) -> StoredRow:
    """The row of a record."""
    outline = (
        record.submitted_ns,
        record.started_ns,
        record.attempts,
        record.priority,
        record.encoding,
        record.failure,
        record.message,
        record.evidence,
        record.usage or None,
        record.blob,
        record.doubt,
    )
    job_id = record.id
    return (
        position,
        job_id if job_id < _SIGN else job_id - _WRAP,
        record.finished_ns,
        record.outcome,
        record.service,
        record.worker or None,
        record.customer_id or None,
        record.workflow_id or None,
        _labels_out(record.labels).decode() if record.labels else None,
        _pack(outline),
        record.result,
    )


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
