"""An answer of a service behind HTTP, read to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from empd.connectors.failures import BadResponse

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
