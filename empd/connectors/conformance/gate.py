"""What stands between a connector and its service: it lets everything through, keeps count, and breaks what it is told.

A gate needs nothing of the service behind it, so that any service will do: a simulated one, a double, a real one.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web

from empd.connectors.conformance.talk import Talk, abort

BODY_BYTES_MAX = 256 << 20
ALWAYS = 1 << 30
_PER_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length"})


class Recorded:
    """One request as it came. `status` is what the service answered, `ended` how it went: `open`, `answered`, `broken`
    (by the gate) or `hung_up` (by the connector)."""

    def __init__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.status = 0
        self.reached = False
        self.ended = "open"

    @property
    def place(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"

    def value(self) -> Any:
        """The body as JSON; None when it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


@dataclass
class Fault:
    """What happens to the next `times` requests that fit one of `places`.

    `status`: this answer instead of the service's, with `headers` and `body`; where `tells` it repeats what it was sent
    as credentials. `cut`: half of the answer. `lost`: the service gets the request, and the answer is lost. `held`: it
    waits here until the event is set. Over gRPC a status becomes its code (`code`: this one), headers are trailers, and
    half of an answer is half of its messages; `stalled`: after them nothing comes.
    """

    places: tuple[str, ...] = ("*",)
    times: int = ALWAYS
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": {"code": "conformance", "message": "a fault that the conformance kit injected"}}'
    tells: bool = False
    cut: bool = False
    lost: bool = False
    held: asyncio.Event | None = None
    code: str = ""
    stalled: bool = False
    struck: int = 0


class Gate(abc.ABC):
    """What all gates can do. `requests` are those that came."""

    def __init__(self, url: str) -> None:
        self.upstream = url
        self.url = ""
        self.down = False
        self.requests: list[Recorded] = []
        self.faults: list[Fault] = []

    @abc.abstractmethod
    async def start(self) -> Self:
        """Listens on a free port of loopback."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Lets go of everything."""

    def inject(self, fault: Fault) -> Fault:
        """The fault strikes from now on."""
        self.faults.append(fault)
        return fault

    def matching(self, places: tuple[str, ...]) -> list[Recorded]:
        """The requests that fit one of the patterns."""
        return [request for request in self.requests if fits(request.place, places)]

    def strikes(self, request: Recorded) -> Fault | None:
        """The fault that this request meets."""
        for fault in self.faults:
            if fault.struck < fault.times and fits(request.place, fault.places):
                fault.struck += 1
                return fault
        return None

    def break_all(self) -> None:
        """Breaks every connection, and any new one: as a service that is gone, or a machine that died."""
        self.down = True

    async def mend(self) -> None:
        """Lets everything through again."""
        self.down = False


def fits(place: str, places: tuple[str, ...]) -> bool:
    """Whether method and path fit one of the patterns."""
    return any(fnmatch.fnmatchcase(place, pattern) for pattern in places)


class HTTPGate(Gate):
    """For HTTP and WebSocket. `talk` is what is said over the latter."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.talk = Talk(self._said)

    async def start(self) -> Self:
        """Listens on a free port of loopback."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._transports: set[asyncio.BaseTransport] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0, ssl=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{urlsplit(self.upstream).path.rstrip('/')}"
        parts = urlsplit(self.upstream)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        return self

    async def close(self) -> None:
        """See Gate.close."""
        await self._session.close()
        await self._runner.cleanup()

    def break_all(self) -> None:
        """See Gate.break_all."""
        super().break_all()
        for transport in tuple(self._transports):
            abort(transport)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if self.down or transport is None:
            raise _broken(transport)
        self._transports.add(transport)
        recorded = Recorded(request.method, request.path, dict(request.headers), await request.read())
        self.requests.append(recorded)
        try:
            response = await self._answer(request, recorded)
            recorded.ended = "answered"
            return response
        except asyncio.CancelledError:
            if recorded.ended == "open":
                recorded.ended = "hung_up"
            raise
        except (aiohttp.ClientError, ConnectionError):
            recorded.ended = "broken"
            raise _broken(transport) from None
        finally:
            self._transports.discard(transport)

    async def _answer(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        fault = self.strikes(recorded)
        if fault is not None and fault.held is not None:
            await fault.held.wait()
        if fault is not None and fault.status:
            recorded.status = fault.status
            body = fault.body
            if fault.tells:
                body = orjson.dumps({"error": {"message": f"not good: {dict(request.headers)} {request.query_string}"}})
            return web.Response(body=body, status=fault.status, headers={**_JSON, **fault.headers})
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request, recorded)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _PER_HOP}
        url = self._origin + request.raw_path
        recorded.reached = True
        async with self._session.request(
            request.method, url, data=recorded.body or None, headers=headers, allow_redirects=False
        ) as answer:
            recorded.status = answer.status
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _PER_HOP]
            if fault is not None and (fault.lost or fault.cut):
                whole = await answer.read()
                await self._broken(request, recorded, whole if fault.cut else None, (answer.status, kept))
            response = web.StreamResponse(status=answer.status)
            response.headers.extend(kept)
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _broken(
        self, request: web.Request, recorded: Recorded, whole: bytes | None, head: tuple[int, list[tuple[str, str]]]
    ) -> None:
        """The connection breaks, after half of the answer where there is any."""
        recorded.ended = "broken"
        if whole:
            response = web.StreamResponse(status=head[0])
            response.headers.extend(head[1])
            response.content_length = len(whole)
            await response.prepare(request)
            await response.write(whole[: len(whole) // 2])
        raise _broken(request.transport)

    async def _socket(self, request: web.Request, recorded: Recorded) -> web.StreamResponse:
        protocols, headers = _of_handshake(request)
        async with self._session.ws_connect(
            self._origin + request.raw_path, headers=headers, protocols=protocols, max_msg_size=0, autoping=False
        ) as outside:
            recorded.reached, recorded.status = True, 101
            return await self.talk.carry(request, outside)

    def _said(self, frame: str | bytes) -> None:
        """Notes a message of the connector's, by its type."""
        recorded = Recorded("SEND", "", {}, frame.encode() if isinstance(frame, str) else frame)
        value = recorded.value()
        recorded.path = str(value.get("type", "")) if isinstance(value, dict) else ""
        recorded.reached, recorded.status, recorded.ended = True, 200, "answered"
        self.requests.append(recorded)


_JSON = {"Content-Type": "application/json"}


def _of_handshake(request: web.Request) -> tuple[tuple[str, ...], dict[str, str]]:
    """The subprotocols that a handshake offers, and the headers that are its own."""
    protocols = request.headers.get("Sec-WebSocket-Protocol", "")
    headers = {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in _PER_HOP and not name.lower().startswith("sec-websocket")
    }
    return tuple(name.strip() for name in protocols.split(",") if name.strip()), headers


def _broken(transport: asyncio.BaseTransport | None) -> asyncio.CancelledError:
    """Breaks the connection that a handler answers on; what is returned ends the handler when it is raised."""
    abort(transport)
    return asyncio.CancelledError()


class TCPGate(Gate):
    """For any protocol on TCP: connections are counted and broken, what is on them is not understood."""

    async def start(self) -> Self:
        """Listens on a free port of loopback."""
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        await self._listen(0)
        return self

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"{urlsplit(self.upstream).scheme}://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        """See Gate.mend."""
        await super().mend()
        await self._listen(self._port)

    async def close(self) -> None:
        """See Gate.close."""
        self.break_all()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def break_all(self) -> None:
        """See Gate.break_all."""
        super().break_all()
        self._server.close()
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        parts = urlsplit(self.upstream)
        self.requests.append(Recorded("CONNECT", parts.netloc, {}, b""))
        try:
            there_reader, there_writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        writers = {writer, there_writer}
        self._open |= writers
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            self._open -= writers
            for each in writers:
                each.transport.abort()
            self._tasks.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
