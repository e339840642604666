"""What a failed call of a service means: rows from status, exception or the service's own error code to a verdict.

The first row that fits decides. A vendor puts rows of its own in front: `VerdictTable(Row(...), ...)`. Codes are read
from the places that the vendor documents (JSON pointers into the error body); no row looks for words in a message.
"""

from __future__ import annotations

import enum
import ssl
from collections.abc import Collection
from typing import Any, NamedTuple

import aiohttp

from empd.connectors import failures
from empd.connectors.failures import ConnectorError
from empd.connectors.protocol.json_pointer import Pointer
from empd.errors import FailureClass
from empd.job import Cause

TEXT_CHARS_MAX = 500


class Fault(enum.StrEnum):
    """Whose fault it was. The circuit breaker counts only the service's."""

    JOB = "job"
    OPERATOR = "operator"
    SERVICE = "service"


class Retry(enum.StrEnum):
    """Whether another try may help: in this attempt (`now`), in a later attempt of the job, or never."""

    NEVER = "never"
    LATER = "later"
    NOW = "now"


class Row(NamedTuple):
    """What follows (`failure` … `text`) from what was seen (`statuses`, `codes`, `exceptions`).

    A row fits when everything fits that it names. `doubt`: the service may have done the work all the same, so that
    doing it again may do it twice. `cause`: what the job's attempt is charged to.
    """

    failure: FailureClass
    retry: Retry
    fault: Fault
    text: str = ""
    doubt: bool = False
    cause: Cause = Cause.JOB_FAULT
    statuses: Collection[int] = ()
    codes: Collection[str] = ()
    exceptions: tuple[type[BaseException], ...] = ()

    def error(self, message: str = "", retry_after_s: float | None = None, evidence: str = "") -> ConnectorError:
        """The exception for a job whose call ended like this."""
        kind = _KINDS.get(self.failure, ConnectorError)
        text = f"{self.text}: {message}" if self.text and message else self.text or message or self.failure.value
        return kind(
            text,
            failure=self.failure,
            retry=self.retry is not Retry.NEVER,
            cause=self.cause,
            retry_after_s=retry_after_s,
            evidence=evidence,
        )


class Trouble(Exception):
    """A call failed: the row that says what follows, and the error that the job ends with if nothing helps."""

    def __init__(self, row: Row, error: ConnectorError) -> None:
        super().__init__(error.message)
        self.row = row
        self.error = error


_KINDS: dict[FailureClass, type[ConnectorError]] = {
    kind.failure: kind
    for kind in (
        failures.InvalidInput,
        failures.RefusedByService,
        failures.AuthFailed,
        failures.NotFound,
        failures.RateLimited,
        failures.ServiceUnavailable,
        failures.ServiceTimeout,
        failures.OutOfMemory,
        failures.GpuLost,
        failures.BadResponse,
    )
}

_F, _R, _UPSTREAM = FailureClass, Retry, Cause.UPSTREAM
_JOB, _OPERATOR, _SERVICE = Fault.JOB, Fault.OPERATOR, Fault.SERVICE

# A plain 500 is charged to the job: a payload that breaks the service must not come again for ever.
STATUS_ROWS = (
    Row(_F.AUTH, _R.NEVER, _OPERATOR, "the service does not accept the credentials", statuses={401, 403, 407}),
    Row(_F.AUTH, _R.NEVER, _OPERATOR, "the service wants payment", statuses={402}),
    Row(_F.NOT_FOUND, _R.NEVER, _JOB, "the service does not know this", statuses={404, 410}),
    Row(_F.TIMEOUT, _R.NOW, _SERVICE, "the service gave up waiting", statuses={408}),
    Row(_F.UNAVAILABLE, _R.NOW, _JOB, "the service is at work on the same thing", statuses={409, 423, 425}),
    Row(_F.RATE_LIMITED, _R.NOW, _JOB, "too many requests", cause=_UPSTREAM, statuses={429}),
    Row(_F.REFUSED, _R.NEVER, _JOB, "the service must not do this", statuses={451}),
    Row(_F.INVALID_INPUT, _R.NEVER, _JOB, "the service does not accept the request", statuses=range(400, 500)),
    Row(_F.UNAVAILABLE, _R.NEVER, _OPERATOR, "the service does not offer this", statuses={501, 505}),
    Row(_F.TIMEOUT, _R.NOW, _SERVICE, "the service timed out", doubt=True, statuses={504, 524}),
    Row(_F.UNAVAILABLE, _R.NOW, _SERVICE, "the service is overloaded", cause=_UPSTREAM, statuses={503, 529}),
    Row(_F.UNAVAILABLE, _R.NOW, _SERVICE, "bad gateway", doubt=True, cause=_UPSTREAM, statuses={502}),
    Row(_F.UNAVAILABLE, _R.NOW, _SERVICE, "the service failed", doubt=True, statuses=range(500, 600)),
    Row(_F.BAD_RESPONSE, _R.NEVER, _OPERATOR, "a redirect that is not followed", statuses=range(300, 400)),
    Row(_F.BAD_RESPONSE, _R.LATER, _SERVICE, "an unexpected status", doubt=True, statuses=range(1000)),
)

# More special ones first: aiohttp's time-outs are both its own kind and TimeoutError.
EXCEPTION_ROWS = (
    Row(
        _F.UNAVAILABLE,
        _R.LATER,
        _OPERATOR,
        "no trusted connection",
        cause=_UPSTREAM,
        exceptions=(aiohttp.ClientSSLError, ssl.SSLError),
    ),
    Row(
        _F.UNAVAILABLE,
        _R.NOW,
        _SERVICE,
        "no connection",
        cause=_UPSTREAM,
        exceptions=(
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            ConnectionRefusedError,
        ),
    ),
    Row(_F.TIMEOUT, _R.NOW, _SERVICE, "no answer in time", doubt=True, exceptions=(TimeoutError,)),
    Row(
        _F.UNAVAILABLE,
        _R.NOW,
        _SERVICE,
        "the connection broke",
        doubt=True,
        exceptions=(aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError),
    ),
    Row(
        _F.BAD_RESPONSE,
        _R.NOW,
        _SERVICE,
        "the answer was cut short or is not HTTP",
        doubt=True,
        exceptions=(aiohttp.ClientPayloadError, aiohttp.ClientResponseError),
    ),
    Row(_F.INVALID_INPUT, _R.NEVER, _OPERATOR, "not an address", exceptions=(aiohttp.InvalidURL,)),
    Row(_F.UNAVAILABLE, _R.LATER, _SERVICE, "the call failed", doubt=True, exceptions=(aiohttp.ClientError, OSError)),
)

_CODE_PLACES = ("/error/code", "/error/type", "/error/status", "/code", "/type", "/error")
_MESSAGE_PLACES = (
    "/error/message",
    "/message",
    "/detail",
    "/error_description",
    "/errors/0/message",
    "/error",
    "/title",
)


class VerdictTable:
    """The rows in order, `own` before the common ones, and where error bodies keep their codes and their message."""

    def __init__(
        self,
        *own: Row,
        code_places: Collection[str] = _CODE_PLACES,
        message_places: Collection[str] = _MESSAGE_PLACES,
    ) -> None:
        self._answers = (*(row for row in own if not row.exceptions), *STATUS_ROWS)
        self._exceptions = (*(row for row in own if row.exceptions), *EXCEPTION_ROWS)
        self._own = tuple(row for row in own if row.codes)
        self._code_places = tuple(map(Pointer, code_places))
        self._message_places = tuple(map(Pointer, message_places))

    def of_answer(self, status: int, body: Any = None) -> Row:
        """The row for an answer that says failure. `body`: its decoded JSON, if it is any."""
        codes = self.codes(body)
        for row in self._answers:
            if (row.statuses or row.codes) and _fits(row, status, codes):
                return row
        return STATUS_ROWS[-1]

    def of_code(self, *codes: str) -> Row | None:
        """The vendor's row for error codes that came without a failure status (in a stream, in a 200 answer)."""
        return next((row for row in self._own if not row.statuses and any(c in row.codes for c in codes)), None)

    def of_exception(self, error: BaseException) -> Row | None:
        """The row for what a client library raised; None when it is nothing that a call of a service raises."""
        return next((row for row in self._exceptions if isinstance(error, row.exceptions)), None)

    def codes(self, body: Any) -> list[str]:
        """The error codes that a body carries, as texts."""
        found = (place.find(body) for place in self._code_places)
        return [str(code) for code in found if isinstance(code, (str, int)) and not isinstance(code, bool)]

    def message(self, body: Any) -> str:
        """What a body says in words, shortened."""
        found = (place.find(body) for place in self._message_places)
        return next((text[:TEXT_CHARS_MAX] for text in found if isinstance(text, str) and text), "")


def _fits(row: Row, status: int, codes: list[str]) -> bool:
    if row.statuses and status not in row.statuses:
        return False
    return not row.codes or any(code in row.codes for code in codes)


COMMON = VerdictTable()
"""The table of a service that has no rows of its own."""
