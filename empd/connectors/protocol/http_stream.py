"""An answer that is read while it comes: chunks, lines, JSON lines, server-sent events; bounded in all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

import orjson

from empd.connectors.failures import BadResponse
from empd.connectors.protocol.http_body import TooLarge
from empd.connectors.protocol.http_short import Response
from empd.connectors.protocol.sse import Event, EventParser

T = TypeVar("T")


class HTTPStream:
    """Read it by one of its methods, once. What breaks on the way is raised as aiohttp raises it.

    `aclose` ends readers that were left in the middle: else each would leave a task behind that does it.
    """

    def __init__(self, response: Response, bytes_max: int) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._bytes_max = bytes_max
        self._readers: list[AsyncGenerator[Any, None]] = []

    async def aclose(self) -> None:
        """Ends all readers; more than once is fine."""
        for reader in self._readers:
            await reader.aclose()

    def _reader(self, reader: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        self._readers.append(reader)
        return reader

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces as they arrive. Raises TooLarge."""
        return self._reader(self._chunks())

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        total = 0
        async for chunk in self._response.content.iter_any():
            total += len(chunk)
            if total > self._bytes_max:
                raise TooLarge(f"the stream is longer than response_bytes_max ({self._bytes_max})", retry=False)
            yield chunk

    def lines(self) -> AsyncGenerator[bytes, None]:
        """Lines without their ends; what follows the last line end is a line too, if it is anything."""
        return self._reader(self._lines())

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        rest = b""
        async for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest

    def json_lines(self) -> AsyncGenerator[Any, None]:
        """NDJSON: the value of each line that is not empty. Raises BadResponse."""
        return self._reader(self._json_lines())

    async def _json_lines(self) -> AsyncGenerator[Any, None]:
        async for line in self.lines():
            if line.strip():
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise BadResponse(f"a line of the stream is not JSON: {error}") from None

    def events(self, parser: EventParser | None = None) -> AsyncGenerator[Event, None]:
        """Server-sent events. `parser` is given to read its `last_id` and `retry_s` afterwards. Raises BadResponse."""
        return self._reader(self._events(parser or EventParser(self._bytes_max)))

    async def _events(self, parser: EventParser) -> AsyncGenerator[Event, None]:
        async for chunk in self.chunks():
            for event in parser.feed(chunk):
                yield event
