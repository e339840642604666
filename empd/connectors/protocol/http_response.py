"""An answer of a service behind HTTP, read to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from empd.connectors.failures import BadResponse
from empd.connectors.protocol.json_pointer import Pointer
from empd.connectors.protocol.sse import EventParser

_CODE = Pointer("/error/code")
_JSON = ("application/json", "+json")


class HTTPResponse:
    """Status, headers (names compared without case) and body; `url` is where it came from in the end."""

    __slots__ = ("body", "headers", "status", "url")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, url: str) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.url = url

    @property
    def content_type(self) -> str:
        """The media type, in lower case, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def is_json(self) -> bool:
        """Whether the headers call the body JSON."""
        return self.content_type.endswith(_JSON)

    def json(self) -> Any:
        """The body as a value. Raises BadResponse."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            start = self.body[:80].decode(errors="replace")
            raise BadResponse(f"the answer is not JSON ({error.msg}): {start!r}") from None

    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def value(self) -> Any:
        """The body as what the headers call it: JSON as a value, text as text, else bytes. Raises BadResponse."""
        if self.is_json:
            return self.json() if self.body else None
        return self.text() if self.content_type.startswith("text/") else self.body


def value_if_json(body: bytes) -> Any:
    """The value of a body that may be JSON; None when it is not."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def failure_of(status: int, body: bytes) -> tuple[int, Any]:
    """Status and value of an answer that says failure.

    LiteLLM answers a stream that it cannot begin with status 500 and an event as the body: the event's value is the
    error then, and where its code is a status, that is the one that the service meant.
    """
    value = value_if_json(body)
    if value is None and body.startswith(b"data:"):
        events = EventParser().feed(body + b"\n\n")
        value = value_if_json(events[0].data.encode()) if events else None
        code = str(_CODE.find(value))
        status = int(code) if code.isascii() and code.isdigit() and 400 <= int(code[:4]) < 600 else status
    return status, value
