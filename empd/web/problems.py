"""Errors as the API tells them: RFC 9457 problem documents that carry the failure class.

Every error of empd becomes one here, so that no handler writes a status code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from empd.errors import (
    BlobMissing,
    EmpdError,
    FailureClass,
    JobFailed,
    NotRunning,
    ProtocolError,
    Refused,
    ResultTimeout,
)
from empd.store.history import HistoryError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MEDIA_TYPE = "application/problem+json"

STATUS_OF: dict[FailureClass, int] = {
    FailureClass.INVALID_INPUT: 400,
    FailureClass.REFUSED: 409,
    FailureClass.AUTH: 403,
    FailureClass.NOT_FOUND: 404,
    FailureClass.RATE_LIMITED: 429,
    FailureClass.UNAVAILABLE: 503,
    FailureClass.TIMEOUT: 504,
    FailureClass.OUT_OF_MEMORY: 507,
    FailureClass.EXPIRED: 410,
    FailureClass.CANCELLED: 409,
    FailureClass.UNMATCHABLE: 422,
    FailureClass.BAD_RESPONSE: 502,
}
"""Failure classes that a request can meet; any other is 500."""

_TITLES = {
    400: "the request is not valid",
    403: "not allowed",
    404: "not found",
    405: "method not allowed",
    409: "in conflict with what the daemon holds",
    410: "its record is past retention",
    413: "too large",
    416: "no such range",
    421: "not a name of this host",
    422: "no worker could ever do this",
    429: "too many requests",
    502: "a bad answer from behind",
    503: "not available now",
    504: "not done in time",
    507: "no room left",
}


class Problem(Exception):
    """An error answer: HTTP status, failure class, one line that says what to do, and more members."""

    def __init__(self, failure: FailureClass, detail: str, *, status: int = 0, **members: Any) -> None:
        self.failure = failure
        self.status = status or STATUS_OF.get(failure, 500)
        self.detail = detail
        self.members = members
        self.headers: dict[str, str] = {}
        super().__init__(detail)

    def document(self) -> dict[str, Any]:
        """The problem document."""
        return {
            "type": f"urn:empd:failure:{self.failure}",
            "title": _TITLES.get(self.status, "the daemon failed"),
            "status": self.status,
            "detail": self.detail,
            "failure": str(self.failure),
            **self.members,
        }

    def response(self) -> web.Response:
        """The answer; `retry_after_s` also goes into the header that clients know."""
        headers = dict(self.headers)
        retry_after_s = self.members.get("retry_after_s")
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        body = orjson.dumps(self.document())
        return web.Response(body=body, status=self.status, content_type=MEDIA_TYPE, headers=headers)


def invalid(key: str, what: str) -> Problem:
    """A mistake in the request at the key path `key` (`$.jobs[0].priority`, `query.limit`, `header.Range`)."""
    return Problem(FailureClass.INVALID_INPUT, f"{key}: {what}", key=key)


def of_refusal(failure: str, reason: str, retry_after_s: float | None) -> Problem:
    """What the broker refused: what may be accepted later is 503 (429 for a rate), the rest by its class."""
    kind = failure_class(failure)
    if retry_after_s is None:
        return Problem(kind, reason)
    status = 429 if kind is FailureClass.RATE_LIMITED else 503
    return Problem(kind, reason, status=status, retry_after_s=retry_after_s)


def failure_class(name: str) -> FailureClass:
    """The class behind a name on the wire; a name of a newer daemon counts as `internal`."""
    try:
        return FailureClass(name)
    except ValueError:
        return FailureClass.INTERNAL


def of_error(error: EmpdError) -> Problem:
    """Any error of empd as a problem."""
    if isinstance(error, Refused):
        return of_refusal(error.failure, error.reason, error.retry_after_s)
    if isinstance(error, JobFailed):
        return Problem(error.failure, error.message, job=error.job_id)
    if isinstance(error, NotRunning):
        return Problem(FailureClass.UNAVAILABLE, str(error) or "the broker does not answer", retry_after_s=1)
    if isinstance(error, ResultTimeout):
        return Problem(FailureClass.TIMEOUT, str(error))
    if isinstance(error, BlobMissing):
        return Problem(FailureClass.NOT_FOUND, str(error))
    if isinstance(error, HistoryError):
        return Problem(FailureClass.UNAVAILABLE, str(error), retry_after_s=1)
    if isinstance(error, ProtocolError):
        return Problem(FailureClass.INVALID_INPUT, str(error))
    return Problem(FailureClass.INTERNAL, str(error))


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what a handler raises into a problem document."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except EmpdError as error:
        return of_error(error).response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return of_http(error)


def of_http(error: web.HTTPException) -> web.Response:
    """aiohttp's own errors (no such route, wrong method, body too large) in the same form."""
    failure = FailureClass.NOT_FOUND if error.status == 404 else FailureClass.INVALID_INPUT
    said = "no such path; /openapi.json lists those there are" if error.status == 404 else error.reason
    response = Problem(failure, said, status=error.status).response()
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
