"""What the API shows of jobs, as JSON: msgpack values, journal times, ended and unfinished jobs.

Bytes have no form in JSON: they become `{"$base64": "…"}`. A value that cannot be shown as JSON at all (too
deep, or not msgpack) becomes the base64 of its encoded bytes; the exact bytes are always at `…/result`.
"""

from __future__ import annotations

import base64
import datetime
from typing import Any

import msgspec
import orjson

from empd.job import Outcome, State, format_id
from empd.payload import BlobRef
from empd.wire.codec import decode_options
from empd.wire.frames import FinishedGroup, FinishedJob, JobError, JobOptions, JobStatus

DEPTH_MAX = 120
"""orjson gives up at 254 levels; a value deeper than this is shown as base64."""

_unpack = msgspec.msgpack.Decoder().decode


class TooDeep(ValueError):
    """A value nested past DEPTH_MAX."""


def marked(data: bytes | bytearray | memoryview) -> dict[str, str]:
    """Bytes as JSON can hold them."""
    return {"$base64": base64.b64encode(data).decode("ascii")}


def jsonable(value: Any, depth: int = 0) -> Any:
    """A decoded msgpack value with nothing in it that JSON lacks. Raises TooDeep."""
    if depth > DEPTH_MAX:
        raise TooDeep
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {_key(key): jsonable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, depth + 1) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return marked(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, msgspec.msgpack.Ext):
        return {"$ext": value.code, **marked(bytes(value.data))}
    return str(value)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return base64.b64encode(key).decode("ascii")
    return str(key)


def packed(data: bytes) -> Any:
    """msgpack bytes as a JSON value; never raises, whatever the bytes are."""
    try:
        return jsonable(_unpack(data))
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return marked(data)


def plain_bytes(data: bytes) -> bytes | None:
    """The bytes inside, where a msgpack value is just bytes; None for any other value."""
    try:
        value = _unpack(data)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return None
    return value if isinstance(value, bytes) else None


def dumps(value: Any) -> bytes:
    """JSON bytes (UTF-8)."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


def time_of(wall_ns: int) -> str | None:
    """Unix nanoseconds as RFC 3339 in UTC; None for 0 and for what no calendar holds."""
    if wall_ns <= 0:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(wall_ns / 1e9, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error(value: JobError | None) -> dict[str, Any] | None:
    """A job's error."""
    if value is None:
        return None
    return {"failure": value.failure, "message": value.message, "evidence": value.evidence}


def blob(ref: BlobRef) -> dict[str, Any]:
    """A blob's reference, and where its bytes are."""
    return {
        "blob": ref.id,
        "size": ref.size,
        "crc32": ref.crc32,
        "durable": ref.durable,
        "encoding": ref.encoding,
        "url": f"/v1/blobs/{ref.id}",
    }


def finished(job: FinishedJob, options: JobOptions, worker: str, at_ns: int) -> dict[str, Any]:
    """An ended job. `result` of a failed one is null."""
    result = blob(job.result) if isinstance(job.result, BlobRef) else None
    if isinstance(job.result, bytes):
        result = packed(job.result)
    return {
        "id": format_id(job.id),
        "state": outcome_label(job.outcome),
        "ended": True,
        "service": options.service,
        "priority": options.priority,
        "customer_id": options.customer_id,
        "workflow_id": options.workflow_id,
        "labels": options.labels or {},
        "submitted_at": time_of(job.submitted_ns),
        "started_at": time_of(job.started_ns),
        "ended_at": time_of(at_ns),
        "attempts": job.attempts,
        "worker": worker or None,
        "result": result,
        "result_url": f"/v1/jobs/{format_id(job.id)}/result" if job.result is not None else None,
        "error": error(job.error),
        "usage": job.usage or {},
        "doubt": job.doubt,
    }


def unfinished(status: JobStatus) -> dict[str, Any]:
    """A job that the broker still holds. A dead-lettered one has ended, although `retry` may give it another chance."""
    dead = status.state == State.DEAD.name.lower()
    return {
        "id": format_id(status.id),
        "state": Outcome.DEAD.label if dead else status.state,
        "ended": dead,
        "service": status.service,
        "priority": status.priority,
        "customer_id": status.customer_id,
        "workflow_id": status.workflow_id,
        "labels": status.labels or {},
        "submitted_at": time_of(status.submitted_ns),
        "started_at": time_of(status.started_ns),
        "attempts": status.attempts,
        "worker": status.worker or None,
        "epoch": status.epoch or None,
        "reason": status.reason,
        "error": error(status.error),
        "doubt": status.doubt,
    }


def outcome_label(outcome: int) -> str:
    """The API's name of an outcome; a number of a newer daemon stays a number."""
    try:
        return Outcome(outcome).label
    except ValueError:
        return f"outcome_{outcome}"


def options_of(group: FinishedGroup) -> JobOptions:
    """The options that the jobs of a group share."""
    return decode_options(bytes(group.options))
