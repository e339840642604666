"""What a client may POST to /v1/jobs, checked, and as the broker takes it."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import msgspec
from aiohttp import web

from empd.errors import FailureClass
from empd.job import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN, JobOptions, parse_id
from empd.payload import INLINE_BYTES_MAX, BlobRef, encode_value
from empd.web import blobs, context
from empd.web.problems import Problem, invalid
from empd.wire import codec

JOBS_MAX = 10_000
KEY_CHARS_MAX = 200
OPTIONS_BYTES_MAX = 64 * 1024

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class JobRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One job to submit. Times in seconds; `payload`: any JSON value, or `{"blob": "<id>"}` for an uploaded blob."""

    service: Annotated[str, msgspec.Meta(min_length=1, max_length=128, description="The job type.")]
    payload: Any = None
    priority: Annotated[int, msgspec.Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX)] = PRIORITY_DEFAULT
    timeout_s: Seconds | None = None
    queue_timeout_s: Seconds | None = None
    total_timeout_s: Seconds | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None
    not_before: Annotated[float, msgspec.Meta(ge=0, description="Unix seconds.")] | None = None
    after: list[str] = []
    requirements: dict[str, Any] | None = None
    resources: dict[str, Any] | None = None
    customer_id: Name | None = None
    workflow_id: Name | None = None
    labels: dict[str, str] | None = None
    model_keys: list[str] = []
    trace: Name | None = None
    origin: tuple[str, str] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_CHARS_MAX)] | None = None


Prepared = tuple[msgspec.Raw, bytes | BlobRef, str]
"""Options, payload, idempotency key ("" for none)."""

_decode_one = msgspec.json.Decoder(JobRequest).decode
_decode_many = msgspec.json.Decoder(Annotated[list[JobRequest], msgspec.Meta(min_length=1, max_length=JOBS_MAX)]).decode


def parse(body: bytes) -> tuple[list[JobRequest], bool]:
    """(jobs, whether it was a list). Raises Problem with the key path of what is wrong."""
    many = body.lstrip()[:1] == b"["
    try:
        return (_decode_many(body), True) if many else ([_decode_one(body)], False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what, _, key = str(error).partition(" - at `")
        raise invalid(key.rstrip("`") or "$", what) from None


async def prepare(request: web.Request, jobs: list[JobRequest], many: bool) -> list[Prepared]:
    """Jobs as the broker takes them; large payloads go into the arena. Raises Problem."""
    header_key = request.headers.get("Idempotency-Key", "").strip('" ')
    if len(header_key) > KEY_CHARS_MAX:
        raise invalid("header.Idempotency-Key", f"at most {KEY_CHARS_MAX} characters")
    shared: dict[bytes, msgspec.Raw] = {}
    prepared = []
    for index, job in enumerate(jobs):
        path = f"$[{index}]" if many else "$"
        encoding, carried = await _carry(request, job.payload, path)
        options = _options(job, encoding, path)
        # Jobs with equal options share one object, and so one group of the frame.
        raw = shared.setdefault(options, msgspec.Raw(options))
        of_header = f"{header_key}/{index}" if many and header_key else header_key
        prepared.append((raw, carried, job.idempotency_key or of_header))
    return prepared


def _options(job: JobRequest, encoding: str, path: str) -> bytes:
    after = []
    for index, text in enumerate(job.after):
        try:
            after.append(parse_id(text))
        except ValueError as error:
            raise invalid(f"{path}.after[{index}]", str(error)) from None
    names = (name for name in JobRequest.__struct_fields__ if name not in ("payload", "after", "idempotency_key"))
    given = {name: getattr(job, name) for name in names}
    given.update(model_keys=tuple(job.model_keys), after=tuple(after))
    try:
        data = codec.encode(JobOptions(encoding=encoding, **given))
    except (OverflowError, RecursionError, ValueError) as error:
        raise invalid(path, f"the options cannot be sent: {error}") from None
    if len(data) > OPTIONS_BYTES_MAX:
        raise invalid(path, f"the options have {len(data)} bytes, at most {OPTIONS_BYTES_MAX}")
    return data


async def _carry(request: web.Request, payload: Any, path: str) -> tuple[str, bytes | BlobRef]:
    """(encoding, what the frame carries)."""
    if isinstance(payload, dict) and set(payload) == {"blob"}:
        if not isinstance(payload["blob"], str):
            raise invalid(f"{path}.payload.blob", "the id of an uploaded blob, 32 hex digits")
        try:
            ref = await blobs.find(request, payload["blob"])
        except Problem as problem:
            raise invalid(f"{path}.payload.blob", problem.detail) from None
        return ref.encoding, ref
    try:
        encoding, data = encode_value(payload)
    except (TypeError, OverflowError, RecursionError, ValueError) as error:
        raise invalid(f"{path}.payload", f"it cannot be sent: {error}") from None
    if len(data) <= INLINE_BYTES_MAX:
        return encoding, bytes(data)
    arena = context.of(request).arena
    ref = await blobs.in_thread(functools.partial(arena.put, data, durable=True, encoding=encoding))
    return encoding, ref


def wait_seconds(request: web.Request, wait_s_max: float) -> float:
    """The `wait` in the query: 0 without it. Raises Problem."""
    text = request.query.get("wait")
    if text is None:
        return 0.0
    try:
        wait_s = float(text)
    except ValueError:
        raise invalid("query.wait", f"a number of seconds, not {text[:50]!r}") from None
    if not 0 <= wait_s <= wait_s_max:
        raise Problem(FailureClass.INVALID_INPUT, f"query.wait: 0 to {wait_s_max:g} seconds", key="query.wait")
    return wait_s
