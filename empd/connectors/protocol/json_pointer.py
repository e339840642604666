"""JSON pointers (RFC 6901): where a value lies in a document."""

from __future__ import annotations

import re
from typing import Any, Final

MISSING: Final = object()
"""What `Pointer.find` gives where there is nothing; None is a value."""

_INDEX = re.compile(r"0|[1-9][0-9]*")
_BAD_ESCAPE = re.compile(r"~(?![01])")


class Pointer:
    """A compiled pointer: `""` is the whole document, `/a/0/b` goes down, `~1` stands for `/` and `~0` for `~`.

    Raises ValueError for a text that is no pointer.
    """

    __slots__ = ("text", "tokens")

    def __init__(self, text: str) -> None:
        if text and not text.startswith("/"):
            raise ValueError(f"{text!r} is not a JSON pointer: it begins with /, or is empty for the whole document")
        if _BAD_ESCAPE.search(text):
            raise ValueError(f"{text!r} is not a JSON pointer: ~ stands only before 0 or 1")
        self.text = text
        self.tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:])

    def find(self, document: Any, default: Any = MISSING) -> Any:
        """The value there, or `default`."""
        for token in self.tokens:
            if isinstance(document, dict):
                document = document.get(token, MISSING)
            elif isinstance(document, list) and _INDEX.fullmatch(token) and int(token) < len(document):
                document = document[int(token)]
            else:
                return default
            if document is MISSING:
                return default
        return document

    def __repr__(self) -> str:
        return f"Pointer({self.text!r})"


def join(*tokens: str | int) -> str:
    """The pointer that goes down these keys and indices."""
    return "".join(f"/{str(token).replace('~', '~0').replace('/', '~1')}" for token in tokens)
