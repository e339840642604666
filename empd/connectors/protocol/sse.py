"""Server-sent events: the parser of the event stream format (WHATWG HTML, 9.2.6). Pure; bytes go in as they come."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from empd.connectors.failures import BadResponse

EVENT_BYTES_MAX = 16 << 20


class Event(NamedTuple):
    """One event. `id` is the last id of the stream, which a reconnect sends as Last-Event-ID."""

    data: str
    event: str = "message"
    id: str = ""


class EventParser:
    """Chunks in, events out, wherever the chunks were cut: inside a character, or between CR and LF.

    `last_id` and `retry_s` are what the stream said last (None: nothing). An event that its blank line does not end is
    not given. `feed` raises BadResponse for an event longer than `bytes_max`.
    """

    def __init__(self, bytes_max: int = EVENT_BYTES_MAX, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_s: float | None = None
        self._bytes_max = bytes_max
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False
        self._after_cr = False
        self._rest = ""
        self._data: list[str] = []
        self._size = 0
        self._kind = ""
        self._id = last_id

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes."""
        text = self._decoder.decode(chunk)
        if not text:
            return []
        if not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        *lines, self._rest = (self._rest + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        if self._size + len(self._rest) > self._bytes_max:
            raise BadResponse(f"an event is longer than {self._bytes_max} bytes", retry=False)
        return [event for event in map(self._line, lines) if event is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._size += len(value) + 1
                if self._size > self._bytes_max:
                    raise BadResponse(f"an event is longer than {self._bytes_max} bytes", retry=False)
            case "event":
                self._kind = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value[:12]) / 1000
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id
        data, kind = self._data, self._kind
        self._data, self._kind, self._size = [], "", 0
        return Event("\n".join(data), kind or "message", self.last_id) if data else None
