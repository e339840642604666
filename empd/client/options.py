"""What may be said of a job beside its payload, as keyword arguments, and its encoded form on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypedDict

import msgspec

from empd import job
from empd.client.tracing import with_trace
from empd.errors import FailureClass, ProtocolError, Refused
from empd.result import JobError, JobStatus
from empd.wire import codec
from empd.wire.frames import JobOptions

CACHED_OPTIONS_MAX = 256
OPTIONS_BYTES_MAX = 64 * 1024


class Identified(Protocol):
    """Anything with a job's integer id: a handle."""

    @property
    def number(self) -> int: ...


class SubmitOptions(TypedDict, total=False):
    """Keyword arguments of `submit` and `submit_many`. Times in seconds.

    `not_before` is a datetime (naive: local time) or Unix seconds; `after` takes handles or ids.
    """

    priority: int
    timeout_s: float | None
    queue_timeout_s: float | None
    total_timeout_s: float | None
    retries: int | None
    not_before: datetime | float | None
    after: Iterable[Identified | str | int]
    requirements: Mapping[str, Any] | None
    resources: Mapping[str, Any] | None
    customer_id: str | None
    workflow_id: str | None
    labels: Mapping[str, str] | None
    model_keys: Iterable[str]
    trace: str | None
    origin: tuple[str, str] | None


def as_number(one: Identified | str | int) -> int:
    """The integer id behind a handle, a 13-character id or an integer. Raises ValueError when it is none."""
    if isinstance(one, int):
        return one
    return job.parse_id(one) if isinstance(one, str) else one.number


def listed(row: Mapping[str, Any]) -> JobStatus:
    """One job of a list answer."""
    return JobStatus(**{**row, "error": msgspec.convert(row["error"], JobError | None)})


class OptionsEncoder:
    """Encodes options once for each distinct set of them: equal arguments give the *same* `Raw` object."""

    def __init__(self) -> None:
        self._cache: dict[Any, msgspec.Raw] = {}

    def encode(self, service: str, encoding: str, options: Mapping[str, Any]) -> msgspec.Raw:
        """The wire form. Raises TypeError for an unknown keyword, Refused (invalid_input) for a wrong value."""
        options = with_trace(service, options)
        # Only hashable values are cached: a list or dict could be changed by its owner between two submits.
        key = (service, encoding, *options.items())
        try:
            cached = self._cache.get(key)
        except TypeError:
            return _encode(service, encoding, options)
        if cached is None:
            if len(self._cache) >= CACHED_OPTIONS_MAX:
                self._cache.clear()
            cached = self._cache[key] = _encode(service, encoding, options)
        return cached


def _encode(service: str, encoding: str, options: Mapping[str, Any]) -> msgspec.Raw:
    given = dict(options)
    not_before = given.get("not_before")
    if isinstance(not_before, datetime):
        given["not_before"] = not_before.timestamp()
    if "after" in given:
        given["after"] = tuple(as_number(one) for one in given["after"])
    if "model_keys" in given:
        given["model_keys"] = tuple(given["model_keys"])
    data = codec.encode(JobOptions(service=service, encoding=encoding, **given))
    if len(data) > OPTIONS_BYTES_MAX:
        raise Refused(FailureClass.INVALID_INPUT, f"the options have {len(data)} bytes, over {OPTIONS_BYTES_MAX}")
    try:
        codec.decode_options(data)
    except ProtocolError as error:
        wrong = [problem for name, value in given.items() if (problem := _problem(name, value))]
        raise Refused(FailureClass.INVALID_INPUT, "; ".join(wrong) or str(error)) from None
    return msgspec.Raw(data)


def _problem(name: str, value: Any) -> str:
    """What is wrong with one option; empty when it fits."""
    try:
        codec.decode_options(codec.encode(JobOptions(service="", **{name: value})))
    except ProtocolError as error:
        why = str(error).partition(": ")[2].partition(" - at ")[0]
        return f"{name}={value!r} does not fit ({why[:1].lower()}{why[1:]})"
    return ""
