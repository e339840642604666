"""Services that answer in a stream: each piece is shown as a partial result, the whole is the result.

    class MyConnector(StreamingHTTP):
        def parse_item(self, item, context): ...          # one piece → what is kept and shown of it (None: nothing)
        def is_last(self, item): ...                      # whether the stream has come to its proper end
        def build_result(self, parts, job, context): ...  # the job's result

A stream that is cut, or ends without its last piece where one is due, is a failure and no result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar, Literal

import orjson

from empd.connectors.base import ConnectorConfig
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse
from empd.connectors.protocol.http import HTTPConnector, given
from empd.connectors.protocol.http_config import HTTPConfig, RequestOptions
from empd.connectors.protocol.http_stream import HTTPStream
from empd.connectors.protocol.sse import Event

_ACCEPT = {"sse": "text/event-stream", "ndjson": "application/x-ndjson, application/json", "chunks": "*/*"}

Item = Any
"""An `Event` (sse), a value (ndjson), or bytes (chunks)."""


class StreamingConfig(HTTPConfig):
    """`framing`: how the stream is cut into items. `done_data`: the data of the event that ends it ("" : none does).

    `last_required`: an end without the last item is a failure.
    """

    framing: Literal["sse", "ndjson", "chunks"] = "sse"
    done_data: str = "[DONE]"
    last_required: bool = True


class StreamingHTTP(HTTPConnector):
    """See the module."""

    Config: ClassVar[type[ConnectorConfig]] = StreamingConfig
    config: StreamingConfig

    # --- what a service fills in ---

    def parse_item(self, item: Item, context: Context) -> Any:
        """What is kept of an item, and shown as a partial result; None: nothing. By default its value.

        Raise a ConnectorError for an item that tells of a failure (`self.answer_failure` makes one from an error body).
        """
        return json_of(item) if isinstance(item, Event) else item

    def is_last(self, item: Item) -> bool:
        """Whether this item is the stream's proper end. It is parsed too, unless it is `done_data`."""
        return False

    def build_result(self, parts: list[Any], job: JobView, context: Context) -> Any:
        """The job's result from what was kept (or a coroutine that gives it). By default the list."""
        return parts

    # --- the way of a job ---

    async def _ask(self, job: JobView, context: Context) -> Any:
        await context.load()
        parts: list[Any] = []
        ended = False
        async for item in self.items(job, context):
            if isinstance(item, Event) and self.config.done_data and item.data == self.config.done_data:
                ended = True
                break
            part = self.parse_item(item, context)
            if part is not None:
                parts.append(part)
                context.partial(part)
            if self.is_last(item):
                ended = True
                break
        if not ended and self.config.last_required:
            raise BadResponse(f"the stream ended before its last item, after {len(parts)}")
        return await given(self.build_result(parts, job, context))

    async def items(self, job: JobView, context: Context) -> AsyncIterator[Item]:
        """The stream's items, in order."""
        method, path, options = await self.main_request(job, context)
        async with self.stream(method, path, context, **options) as stream:
            async for item in self.framed(stream):
                yield item

    async def main_request(self, job: JobView, context: Context) -> tuple[str, str, RequestOptions]:
        """The request that opens the stream."""
        method, path, options = await super().main_request(job, context)
        options["headers"] = {"Accept": _ACCEPT[self.config.framing], **options.get("headers", {})}
        return method, path, options

    def framed(self, stream: HTTPStream) -> AsyncIterator[Item]:
        """The body cut into items."""
        match self.config.framing:
            case "sse":
                return stream.events()
            case "ndjson":
                return stream.json_lines()
        return stream.chunks()


def json_of(event: Event) -> Any:
    """The value of an event's data. Raises BadResponse."""
    try:
        return orjson.loads(event.data)
    except orjson.JSONDecodeError as error:
        raise BadResponse(f"an event's data is not JSON: {error.msg}") from None
