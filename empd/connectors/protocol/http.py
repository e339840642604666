"""Services behind HTTP: connections, credentials, retries, limits and verdicts, so that a service is three methods.

    class MyConnector(HTTPConnector):
        def build_request_payload(self, job, context): ...      # what the service wants to be asked
        def parse_response(self, response, job, context): ...   # the job's result
        def validate_service_response(self, response): ...      # False: no result, although its status is 2xx

A job of several calls overrides `process` and uses `await self.request(method, path, context, …)` and
`async with self.stream(…)`. Whatever goes wrong comes out as a ConnectorError by the verdict table.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar, Unpack
from urllib.parse import quote, urlsplit

import aiohttp
import orjson

from empd.connectors.base import ConnectorConfig, Service, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError, InvalidInput, ServiceUnavailable
from empd.connectors.protocol import auth
from empd.connectors.protocol.calls import Calls, Rules
from empd.connectors.protocol.http_body import read_bounded
from empd.connectors.protocol.http_config import HTTPConfig, RequestOptions
from empd.connectors.protocol.http_response import HTTPResponse, failure_of, value_if_json
from empd.connectors.protocol.http_session import HTTPSession, Outgoing
from empd.connectors.protocol.http_short import Response
from empd.connectors.protocol.http_stream import HTTPStream
from empd.connectors.protocol.retry import asked_wait_s
from empd.connectors.protocol.verdicts import COMMON, Fault, Retry, Row, Trouble, VerdictTable
from empd.connectors.redaction import Redaction
from empd.errors import FailureClass

T = TypeVar("T")

ERROR_BYTES_MAX = 64 * 1024
EVIDENCE_CHARS_MAX = 2_000
_REPEATABLE = ("GET", "HEAD", "PUT", "DELETE")
_JSON_HEADERS = {"Accept": "application/json", "Content-Type": "application/json"}
_ACCEPT_HEADERS = {"Accept": "application/json"}
_NONE: dict[str, str] = {}

_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
"""What a call raises that does not come to its end."""

NO_RESULT = Row(FailureClass.BAD_RESPONSE, Retry.LATER, Fault.SERVICE, "the answer is no result", doubt=True)
"""What follows from an answer that `validate_service_response` does not take, and no row of the vendor knows."""


class _Request(NamedTuple):
    """One call of the service, as its tries need it."""

    outgoing: Outgoing
    endpoint: str
    repeatable: bool
    options: RequestOptions


class HTTPConnector(Service):
    """See the module. `verdicts` is the service's table; `redact` keeps its secrets out of texts."""

    service_type: ClassVar[str] = "http"
    protocol: ClassVar[str] = "http"
    Config: ClassVar[type[ConnectorConfig]] = HTTPConfig
    config: HTTPConfig
    verdicts: ClassVar[VerdictTable] = COMMON

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        settings = self.config
        self.redact = Redaction(site.learn)
        self.redact.learn([*site.secrets.values(), *auth.secrets_of(settings.auth)])
        self.calls = Calls(Rules(settings.retry, settings.rate_limit, settings.circuit), site)
        self._endpoint = f"{settings.method} {settings.endpoint}"
        self._session: HTTPSession | None = None

    # --- what a service fills in ---

    def build_request_payload(self, job: JobView, context: Context) -> Any:
        """The body of the main call: a value (sent as JSON), bytes, or a coroutine that gives one of them.

        By default the job's payload. Raise InvalidInput for a payload that the service could not take.
        """
        return context.payload

    def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """The job's result: a value, a `Result`, or a coroutine that gives one. By default the body's value."""
        return response.value()

    def validate_service_response(self, response: HTTPResponse) -> bool:
        """Whether an answer with a good status is one. By default yes."""
        return True

    # --- life ---

    @property
    def base_url(self) -> str:
        """Where the service is, without a slash at the end. Raises ServiceUnavailable when nobody said."""
        url = self.site.endpoint or self.config.base_url
        if not url:
            raise ServiceUnavailable(f"nobody says where the service {self.site.service!r} is (base_url, base_port)")
        return url.rstrip("/")

    @property
    def session(self) -> HTTPSession:
        """The open session. Raises ServiceUnavailable before `open` and after `close`."""
        if self._session is None:
            raise ServiceUnavailable(f"service {self.site.service!r} is not open")
        return self._session

    async def open(self) -> None:
        """Makes the pool. A subclass that opens more calls this first."""
        if self._session is None:
            self.calls.forget_circuits()
            self._session = HTTPSession(self.config, self.site.max_concurrent_jobs, self.redact.learn_passing)

    async def close(self) -> None:
        """Closes all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def check_health(self) -> bool:
        """Asks `health_path`, once, around limits and circuit; healthy where none is configured."""
        if not self.config.health_path:
            return True
        timeout = aiohttp.ClientTimeout(total=self.config.health_timeout_s)
        request = self._prepare("GET", self.config.health_path, None, {"timeout": timeout, "aside": True})
        await _final(self._try(request))
        return True

    async def process(self, job: JobView, context: Context) -> Any:
        """One call: builds, sends, validates, parses."""
        return await self._ask(job, context)

    async def _ask(self, job: JobView, context: Context) -> Any:
        await context.load()
        return await given(self.parse_response(await self.call(job, context), job, context))

    async def call(self, job: JobView, context: Context) -> HTTPResponse:
        """The main call, answered by what `validate_service_response` takes."""
        method, path, options = await self.main_request(job, context)
        options["check"] = self.validate_service_response
        return await self.request(method, path, context, **options)

    async def main_request(self, job: JobView, context: Context) -> tuple[str, str, RequestOptions]:
        """Method, path and options of the main call: what `build_request_payload` gives, sent to `endpoint` (as a
        query, with GET), with the submission's key."""
        config = self.config
        body = await given(self.build_request_payload(job, context))
        options: RequestOptions = {"endpoint": self._endpoint}
        if config.idempotency_header:
            options["idempotency_key"] = context.idempotency_key
        if config.method == "GET":
            options["params"] = query_from(body)
        elif isinstance(body, bytes):
            options["data"] = body
        else:
            options["json"] = body
        return config.method, config.endpoint, options

    def answer_failure(self, body: Any) -> ConnectorError:
        """The failure that an answer or a part of a stream tells of although its status is good."""
        row = self.verdicts.of_code(*self.verdicts.codes(body)) or NO_RESULT
        return row.error(self.redact(self.verdicts.message(body)), evidence=self.redact(shown(body)))

    # --- calls ---

    async def request(
        self, method: str, path: str, context: Context | None = None, **options: Unpack[RequestOptions]
    ) -> HTTPResponse:
        """One call of the service, read to its end: turn, circuit, credentials, retries.

        `path` is below `base_url`, or a whole URL; `{name}` in it is filled from `path_args`. Raises ConnectorError.
        """
        request = self._prepare(method, path, context, options)
        aside = request.outgoing.aside
        if options.get("once"):
            return await _final(
                self.calls.once(request.endpoint, lambda: self._try(request), context, holds_slot=aside)
            )
        return await self.calls.run(
            request.endpoint, lambda: self._try(request), context, repeatable=request.repeatable, holds_slot=aside
        )

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, context: Context | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncIterator[HTTPStream]:
        """As `request`, but the body is read as it comes: `chunks`, `lines`, `json_lines`, `events`.

        Tried again only until the answer has begun; a cut after that is the caller's to see, as a ConnectorError.
        """
        request = self._prepare(method, path, context, options)

        def attempt() -> Awaitable[Response]:
            return self._open(request)

        bytes_max = options.get("response_bytes_max", self.config.response_bytes_max)
        calls, endpoint = self.calls, request.endpoint
        async with calls.slot():
            if options.get("once"):
                response = await _final(calls.once(endpoint, attempt, context, holds_slot=True))
            else:
                response = await calls.run(endpoint, attempt, context, repeatable=request.repeatable, holds_slot=True)
            answer = HTTPStream(response, bytes_max)
            try:
                yield answer
            except _BROKEN as error:
                trouble = self._trouble(error, request)
                calls.faulty(endpoint, trouble)
                raise trouble.error from error
            finally:
                # Unread bytes are nobody's: the connection is not used again.
                response.close()
                await answer.aclose()

    def _prepare(self, method: str, path: str, context: Context | None, options: RequestOptions) -> _Request:
        endpoint = options.get("endpoint") or f"{method} {path}"
        if "path_args" in options:
            values = {name: quote(str(value), safe="") for name, value in options["path_args"].items()}
            path = path.format_map(values)
        url = path if path.startswith(("http://", "https://")) else self.base_url + path
        body: bytes | Callable[[], Any] | None = options.get("data")
        headers: Mapping[str, str] = _ACCEPT_HEADERS
        if "json" in options:
            body, headers = encoded(options["json"]), _JSON_HEADERS
        if self.config.headers or "headers" in options:
            headers = {**headers, **self.config.headers, **options.get("headers", _NONE)}
        key = options.get("idempotency_key")
        if key is not None:
            headers = {**headers, self.config.idempotency_header or "Idempotency-Key": key}
        repeatable = options.get("repeatable", key is not None or method in _REPEATABLE)
        outgoing = Outgoing(
            method, url, headers, body, options.get("params"), options.get("timeout"), options.get("aside", False)
        )
        return _Request(outgoing, endpoint, repeatable, options)

    async def _try(self, request: _Request) -> HTTPResponse:
        """One exchange and what the table says of it. Raises Trouble."""
        response = await self._open(request)
        try:
            body = await read_bounded(
                response, request.options.get("response_bytes_max", self.config.response_bytes_max)
            )
        except _BROKEN as error:
            raise self._trouble(error, request) from error
        answer = HTTPResponse(response.status, response.headers, body, request.outgoing.url)
        check = request.options.get("check")
        if check is not None and not check(answer):
            value = value_if_json(body)
            row = self.verdicts.of_code(*self.verdicts.codes(value)) or NO_RESULT
            raise self._refused(row, answer, value, request)
        return answer

    async def _open(self, request: _Request) -> Response:
        """The head of a good answer. Raises Trouble."""
        try:
            response = await self.session.send(request.outgoing)
        except _BROKEN as error:
            raise self._trouble(error, request) from error
        self.calls.observe(response.headers)
        if response.status < 300 or response.status in request.options.get("accept", ()):
            return response
        try:
            body = await response.content.read(ERROR_BYTES_MAX)
        except _BROKEN:
            body = b""  # the status alone says enough
        finally:
            response.close()
        status, value = failure_of(response.status, body)
        answer = HTTPResponse(response.status, response.headers, body, request.outgoing.url)
        raise self._refused(self.verdicts.of_answer(status, value), answer, value, request)

    def _refused(self, row: Row, answer: HTTPResponse, value: Any, request: _Request) -> Trouble:
        message = self.redact(self.verdicts.message(value))
        evidence = self.redact(f"{request.endpoint}: status {answer.status}\n{answer.text()[:EVIDENCE_CHARS_MAX]}")
        wait_s = asked_wait_s(answer.headers, time.time())
        return Trouble(row, row.error(message or f"status {answer.status}", wait_s, evidence))

    def _trouble(self, error: Exception, request: _Request) -> Trouble:
        row = self.verdicts.of_exception(error)
        assert row is not None  # the last row takes every one of _BROKEN
        place = urlsplit(request.outgoing.url).netloc.rpartition("@")[2]
        return Trouble(row, row.error(f"{request.endpoint} at {place} ({_short(error)})"))


async def _final(call: Awaitable[T]) -> T:
    """What a call gives that is not tried again."""
    try:
        return await call
    except Trouble as trouble:
        raise trouble.error from trouble.__cause__


def _short(error: Exception) -> str:
    """What went wrong on the way, without the address: the system's own words where there are some."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number, words = error.os_error.errno or 0, error.os_error.strerror
        return os.strerror(number) if number > 0 else words or type(error).__name__
    return type(error).__name__


def shown(value: Any) -> str:
    """A body as evidence."""
    return repr(value)[:EVIDENCE_CHARS_MAX]


async def given(value: Any) -> Any:
    """The value, or what it gives when it is awaited."""
    return await value if hasattr(value, "__await__") else value


def encoded(value: Any) -> bytes:
    """The value as JSON. Raises InvalidInput."""
    try:
        return orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise InvalidInput(f"the request cannot be written as JSON: {error}") from None


def query_from(value: Any) -> dict[str, str]:
    """A flat object as a query: texts and numbers as they are, true and false as JSON writes them."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput("a GET takes an object of names and values")
    return {
        str(name): item if isinstance(item, str) else encoded(item).decode()
        for name, item in value.items()
        if item is not None
    }
