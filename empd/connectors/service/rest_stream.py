"""Streaming services from the mapping alone: an answer in pieces, or events that are followed over broken connections.

`endpoint`, `headers`, `params` and `body` are templates, as in `rest`; `pieces` says what the items mean.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from empd.connectors.base import ConnectorConfig, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse
from empd.connectors.protocol.http_response import value_if_json
from empd.connectors.protocol.http_streaming import Item, StreamingConfig, StreamingHTTP
from empd.connectors.protocol.json_pointer import MISSING, Pointer
from empd.connectors.protocol.sse import Event
from empd.connectors.protocol.stream import StreamConfig, StreamConnector
from empd.connectors.service.rest_shape import Shaped, Words


class Pieces(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`place`: what of an item is kept (items without it are passed over). The last item is known by its event's name
    or by a word at `done_place`; a failure by its event's name or by anything at `error_place`.

    `join`: the result is the pieces as one `text`, as a `list`, or only the `last`.
    """

    place: str = ""
    done_events: tuple[str, ...] = ()
    done_place: str | None = None
    done_words: tuple[str, ...] = ("true", "done", "completed", "stop")
    error_events: tuple[str, ...] = ("error",)
    error_place: str = "/error"
    progress_place: str | None = None
    progress_scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    join: Literal["text", "list", "last"] = "list"


class RestStreamConfig(StreamingConfig):
    """One request whose answer comes in pieces."""

    body: Any = None
    params: dict[str, Any] = {}
    pieces: Pieces = Pieces()


class RestStreamConnector(Shaped, StreamingHTTP):
    """Server-sent events, NDJSON or plain chunks as the answer of one request."""

    connector_id = "rest_stream"
    service_type = "rest"
    Config: ClassVar[type[ConnectorConfig]] = RestStreamConfig
    config: RestStreamConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        pieces = self._pieces = self.config.pieces
        self._place, self._error = Pointer(pieces.place), Pointer(pieces.error_place)
        self._progress = Pointer(pieces.progress_place) if pieces.progress_place is not None else None
        self._done = Words(pieces.done_place, pieces.done_words) if pieces.done_place is not None else None

    def parse_item(self, item: Item, context: Context) -> Any:
        """What lies at `place`. Raises the failure that the item tells of."""
        value = value_of(item)
        named = isinstance(item, Event) and item.event in self._pieces.error_events
        if named or self._error.find(value, None) is not None:
            raise self.answer_failure(value)
        if self._progress is not None:
            progress = self._progress.find(value, None)
            if isinstance(progress, (int, float)):
                context.progress(progress / self._pieces.progress_scale)
        found = self._place.find(value)
        return None if found is MISSING else found

    def is_last(self, item: Item) -> bool:
        """By the event's name, or the word at `done_place`."""
        named = isinstance(item, Event) and item.event in self._pieces.done_events
        return named or (self._done is not None and self._done.says(value_of(item)))

    def build_result(self, parts: list[Any], job: JobView, context: Context) -> Any:
        """The pieces, joined."""
        match self._pieces.join:
            case "text":
                return "".join(part if isinstance(part, str) else str(part) for part in parts)
            case "last" if not parts:
                raise BadResponse("the stream ended without a piece")
            case "last":
                return parts[-1]
        return parts


class SSEConfig(StreamConfig):
    """Events that are followed over broken connections, or poll by poll (`mode` `long_poll`)."""

    body: Any = None
    params: dict[str, Any] = {}
    pieces: Pieces = Pieces()


class SSEConnector(RestStreamConnector, StreamConnector):
    """Follows a stream of events; a broken one is opened again where it broke off."""

    connector_id = "sse"
    service_type = "sse"
    Config: ClassVar[type[ConnectorConfig]] = SSEConfig
    config: SSEConfig  # type: ignore[assignment]  # both bases have one; this is their union


def value_of(item: Item) -> Any:
    """An item's value: what is JSON as a value, else text."""
    if isinstance(item, bytes):
        return item.decode(errors="replace")
    if not isinstance(item, Event):
        return item
    found = value_if_json(item.data.encode())
    return item.data if found is None else found
