"""The short way of the usual request over the connections of an aiohttp session.

aiohttp keeps the pool, resolves names, speaks TLS, parses answers and watches the time between two bytes. What it does
for each request before and after that is more than half of what a call costs, and the same each time: so here a head
is made once, by aiohttp too, and the body is written with it, by no task of its own. A request that wants more (a
query, a form, a time-out for all of it, a proxy, somebody who traces) has no `head` here and goes the long way.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from aiohttp import hdrs, http
from aiohttp.connector import Connection
from yarl import URL

BODY_BYTES_MAX = 64 * 1024
"""A larger body is written piece by piece, as fast as it leaves."""

HEADS_MAX = 128

TRIED = ((3, 10), (3, 14))
"""The first and the last release of aiohttp whose connections are known to be used so. Its parts are named in no
promise of theirs: with any other release every request goes the long way, and is only slower.
"""
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_REPEATED = frozenset({"GET", "PUT", "DELETE"})
_FRAMING = frozenset({"content-length", "transfer-encoding", "content-encoding", "connection", "expect"})
_UNSAFE = re.compile(r"[\r\n\0]")


class Head(NamedTuple):
    """What all requests of one kind begin with, up to the length of their body."""

    request: aiohttp.ClientRequest
    data: bytes


class Answer:
    """What is used of an `aiohttp.ClientResponse`, which it stands in for."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(self, connection: Connection, message: http.RawResponseMessage, content: aiohttp.StreamReader) -> None:
        self._connection: Connection | None = connection
        self.status = message.code
        self.headers = message.headers
        self.content = content
        content.on_eof(self.release)

    @property
    def content_length(self) -> int | None:
        """As the head says."""
        length = self.headers.get(hdrs.CONTENT_LENGTH)
        return None if length is None else int(length)

    async def read(self) -> bytes:
        """The whole body. Raises what aiohttp raises, with the connection closed."""
        content = self.content
        try:
            return content.read_nowait() if content.is_eof() else await content.read()
        except BaseException:  # whatever it was, the connection is in the middle of an answer
            self.close()
            raise

    def release(self) -> None:
        """Gives the connection back; one whose answer has not come to its end is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def close(self) -> None:
        """Closes the connection, unless the answer's end gave it back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            if self.content.exception() is None:
                self.content.set_exception(aiohttp.ClientConnectionError("the connection is closed"))


Response = aiohttp.ClientResponse | Answer
"""What came back, whichever way the request went."""


def is_tried(version: str) -> bool:
    """Whether this release of aiohttp is one of those in `TRIED`."""
    found = re.match(r"(\d+)\.(\d+)\.", version)
    return found is not None and TRIED[0] <= (int(found[1]), int(found[2])) <= TRIED[1]


class ShortWay:
    """One session's. `user_agent` as the session says it."""

    def __init__(self, session: aiohttp.ClientSession, user_agent: str) -> None:
        self._session = session
        self._user_agent = user_agent
        self._long = bool(session.timeout.total) or not is_tried(aiohttp.__version__)
        self._read_timeout_s = session.timeout.sock_read
        self._made = functools.lru_cache(HEADS_MAX)(self._make)

    def head(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Head | None:
        """The head of a request that is taken; None: it goes the long way."""
        if self._long or self._session.trace_configs or (body and len(body) > BODY_BYTES_MAX):
            return None
        return self._made(method, url, tuple(headers.items()), body is None)

    async def send(self, head: Head, body: bytes | None) -> Answer:
        """The answer's head; the caller releases or closes it. Raises what aiohttp raises."""
        data = head.data if body is None else b"%b%d\r\n\r\n%b" % (head.data, len(body), body)
        try:
            return await self._exchange(head.request, data)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if head.request.method not in _REPEATED:
                raise
        # RFC 9112, 9.3.1: the service may have closed the kept connection before it saw the request.
        return await self._exchange(head.request, data)

    async def _exchange(self, request: aiohttp.ClientRequest, data: bytes) -> Answer:
        connector = self._session.connector
        if connector is None:
            raise RuntimeError("the session is closed")
        try:
            connection = await connector.connect(request, [], self._session.timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {request.url.host} in time") from error
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                raise aiohttp.ClientConnectionResetError("the connection is closed")
            protocol.set_response_params(read_until_eof=True, read_timeout=self._read_timeout_s)
            transport.write(data)
            protocol.start_timeout()
            message, content = await protocol.read()
            while message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except http.HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientPayloadError(f"the answer is no HTTP: {error.message}") from error
        except BaseException:  # cancelled too: nobody reads what may still come
            connection.close()
            raise
        return Answer(connection, message, content)

    def _make(self, method: str, url: str, headers: tuple[tuple[str, str], ...], bare: bool) -> Head | None:
        own = (hdrs.USER_AGENT, self._user_agent)
        given = {name.lower(): (name, value) for name, value in (own, *headers)}
        try:
            address = URL(url)
        except ValueError:
            return None
        usual = method in _METHODS and address.raw_host is not None and address.raw_user is None
        if not usual or not _FRAMING.isdisjoint(given):
            return None
        request = aiohttp.ClientRequest(method, address, headers=given.values(), session=self._session)
        made = request.headers
        if not bare:
            made.popall(hdrs.CONTENT_LENGTH, None)  # of no body
        if not bare or method in request.POST_METHODS:
            made.setdefault(hdrs.CONTENT_TYPE, "application/octet-stream")
        lines = [f"{method} {request.url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in made.items())]
        if any(map(_UNSAFE.search, lines)):
            raise ValueError("a header of the request has a line end or a zero byte")
        end = "\r\n\r\n" if bare else f"\r\n{hdrs.CONTENT_LENGTH}: "
        return Head(request, ("\r\n".join(lines) + end).encode())
