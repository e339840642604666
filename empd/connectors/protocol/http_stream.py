"""An answer that is read while it comes: chunks, lines, JSON lines, server-sent events; bounded in all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import orjson

from empd.connectors.failures import BadResponse
from empd.connectors.protocol.http_session import TooLarge
from empd.connectors.protocol.sse import Event, EventParser


class HTTPStream:
    """Read it by one of its methods, once. What breaks on the way is raised as aiohttp raises it."""

    def __init__(self, response: aiohttp.ClientResponse, bytes_max: int) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._bytes_max = bytes_max

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive. Raises TooLarge."""
        total = 0
        async for chunk in self._response.content.iter_any():
            total += len(chunk)
            if total > self._bytes_max:
                raise TooLarge(f"the stream is longer than response_bytes_max ({self._bytes_max})", retry=False)
            yield chunk

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines without their ends; what follows the last line end is a line too, if it is anything."""
        rest = b""
        async for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest

    async def json_lines(self) -> AsyncIterator[Any]:
        """NDJSON: the value of each line that is not empty. Raises BadResponse."""
        async for line in self.lines():
            if line.strip():
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise BadResponse(f"a line of the stream is not JSON: {error}") from None

    async def events(self, parser: EventParser | None = None) -> AsyncIterator[Event]:
        """Server-sent events. `parser` is given to read its `last_id` and `retry_s` afterwards. Raises BadResponse."""
        parser = parser or EventParser(self._bytes_max)
        async for chunk in self.chunks():
            for event in parser.feed(chunk):
                yield event
