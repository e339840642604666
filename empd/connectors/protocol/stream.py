"""Services whose events are fetched: server-sent events that are taken up where they broke off, and long polling.

    class MyConnector(StreamConnector):
        def parse_item(self, item, context): ...          # as in StreamingHTTP
        def is_last(self, item): ...
        def build_result(self, parts, job, context): ...

With `sse` a broken connection is opened again with Last-Event-ID, after the time that the stream asked for (`retry`).
With `long_poll` each answer holds a list of items (at `items_place`) and a cursor (at `cursor_place`) for the next one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, ClassVar, Literal

import msgspec

from empd.connectors.base import ConnectorConfig, ReportsProgress, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError, ServiceUnavailable
from empd.connectors.protocol.http_config import Method, RequestOptions
from empd.connectors.protocol.http_streaming import Item, StreamingConfig, StreamingHTTP
from empd.connectors.protocol.json_pointer import Pointer
from empd.connectors.protocol.retry import pause
from empd.connectors.protocol.sse import EventParser


class StreamConfig(StreamingConfig):
    """`reconnects_max` counts in a row: an event in between starts the count again. `reconnect_s`: the wait before, as
    long as the stream does not name one; it is at most `reconnect_s_max`."""

    mode: Literal["sse", "long_poll"] = "sse"
    method: Method = "GET"
    reconnects_max: Annotated[int, msgspec.Meta(ge=0)] = 5
    reconnect_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    reconnect_s_max: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    items_place: str = "/items"
    cursor_place: str = "/cursor"
    cursor_parameter: str = "cursor"


class StreamConnector(StreamingHTTP, ReportsProgress):
    """See the module."""

    protocol: ClassVar[str] = "stream"
    Config: ClassVar[type[ConnectorConfig]] = StreamConfig
    config: StreamConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self._items_at = Pointer(self.config.items_place)
        self._cursor_at = Pointer(self.config.cursor_place)

    async def items(self, job: JobView, context: Context) -> AsyncIterator[Item]:
        """The items over all connections or polls."""
        method, path, options = await self.main_request(job, context)
        source = self._events if self.config.mode == "sse" else self._polled
        async for item in source(method, path, options, context):
            yield item

    async def _events(self, method: str, path: str, options: RequestOptions, context: Context) -> AsyncIterator[Item]:
        config = self.config
        last_id, broken = "", 0
        headers = dict(options.get("headers", {}))
        while True:
            parser = EventParser(config.response_bytes_max, last_id)
            options["headers"] = {**headers, "Last-Event-ID": last_id} if last_id else headers
            failure: ConnectorError | None = None
            try:
                async with self.stream(method, path, context, **options) as stream:
                    options["once"] = True  # from here on this is the loop that tries again, and the only one
                    if stream.status == 204:
                        return  # the server's way to say that there is nothing more (WHATWG HTML, 9.2.3)
                    async for event in stream.events(parser):
                        broken = 0
                        context.progress(context.fraction)
                        yield event
            except (BadResponse, ServiceUnavailable) as error:
                if not error.retry or "once" not in options:
                    raise
                failure = error
            last_id, broken = parser.last_id, broken + 1
            if broken > config.reconnects_max:
                raise failure or BadResponse(f"the stream ended {broken} times without an event")
            wait_s = config.reconnect_s if parser.retry_s is None else parser.retry_s
            context.log("stream opened again", last_event_id=last_id, reason=failure.message if failure else "ended")
            await pause(min(wait_s, config.reconnect_s_max), context)
            if context.cancelled:
                raise ConnectorError(f"stopped: {context.stop_reason}")

    async def _polled(self, method: str, path: str, options: RequestOptions, context: Context) -> AsyncIterator[Item]:
        config = self.config
        params = dict(options.get("params", {}))
        while True:
            options["params"] = params
            response = await self.request(method, path, context, **options)
            context.progress(context.fraction)
            if response.status == 204 or not response.body:
                await pause(config.reconnect_s, context)
                continue
            body = response.json()
            items = self._items_at.find(body)
            if not isinstance(items, list):
                raise BadResponse(f"the answer has no list at {config.items_place or 'its top'}", retry=False)
            for item in items:
                yield item
            cursor = self._cursor_at.find(body, None)
            if cursor is None and not items:
                return
            if cursor is not None:
                params = {**params, config.cursor_parameter: str(cursor)}
            if not items:
                await pause(config.reconnect_s, context)
