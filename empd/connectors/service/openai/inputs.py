"""Pictures and sounds that come with a job: a URL, a data URL, base64 or bytes, as the service wants to have them."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from empd.connectors.failures import InvalidInput
from empd.media import extension, media_type

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.-]+)*;base64,", re.ASCII)
_BASE64_CHARS_MIN = 100
"""Shorter texts are rather a template's placeholder, or a mistake, than a picture."""


def is_address(content: Any) -> bool:
    """Whether it says where the bytes are, not what they are."""
    return isinstance(content, str) and content.startswith(("https://", "http://"))


def data_url(content: Any, what: str) -> str:
    """`content` as an address that the service can read: its URL, or the bytes as a data URL. Raises InvalidInput."""
    if is_address(content):
        return str(content)
    data = binary(content, what)
    return f"data:{media_type(data, whole=True)};base64,{base64.b64encode(data).decode()}"


def binary(content: Any, what: str) -> bytes:
    """The bytes of a data URL, of base64 text, or as they are. Raises InvalidInput with `what` in the text."""
    if isinstance(content, bytes):
        return content
    if not isinstance(content, str):
        raise InvalidInput(f"{what} must be a URL, a data URL, base64 text or bytes")
    match = _DATA_URL.match(content)
    if match is None and len(content) < _BASE64_CHARS_MIN:
        raise InvalidInput(f"{what} is neither a URL nor a data URL, and too short for base64: {content[:40]!r}")
    try:
        return base64.b64decode(content[match.end() :] if match else content, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{what} is not base64") from None


def listed(content: Any) -> list[Any]:
    """One thing or several, as a list."""
    if content is None:
        return []
    return list(content) if isinstance(content, (list, tuple)) else [content]


def file_name(data: bytes, stem: str) -> tuple[str, str]:
    """A name for an upload, and its media type: services go by the name's ending."""
    kind = media_type(data, whole=True)
    return f"{stem}.{extension(kind)}", kind
