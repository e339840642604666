"""How a payload or a result is carried: inline bytes, or a reference to a blob in the arena."""

from __future__ import annotations

from typing import Any

import msgspec

INLINE_BYTES_MAX = 64 * 1024
"""Payloads and results above this go through the arena on the same host."""

FRAME_BYTES_MAX = 1 << 20
"""No frame on a socket is larger."""


class BlobRef(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A blob in the arena: 32 hex digits, size in bytes, CRC-32 of the content, how the content is encoded.

    `durable` ones lie in the state directory's spool and survive a reboot.
    """

    id: str
    size: int
    crc32: int
    durable: bool = True
    encoding: str = "bytes"


Carried = bytes | BlobRef

ENCODINGS = ("msgpack", "json", "bytes")

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_unjson = msgspec.json.Decoder().decode


def encode_value(value: Any) -> tuple[str, bytes | memoryview]:
    """A Python value as (encoding, bytes): bytes-like values as they are, all else as msgpack.

    Raises TypeError when the value has no msgpack form.
    """
    if isinstance(value, (bytes, bytearray)):
        return "bytes", bytes(value)
    if isinstance(value, memoryview):
        return "bytes", value
    try:
        return "msgpack", _pack(value)
    except (OverflowError, RecursionError) as error:
        raise TypeError(f"msgpack cannot carry this value: {error}") from None


def decode_value(encoding: str, data: bytes | memoryview) -> Any:
    """The value behind `encode_value`; also reads JSON. Raises ValueError when the bytes are not of that encoding."""
    if encoding == "bytes":
        return data
    try:
        return _unpack(data) if encoding == "msgpack" else _unjson(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"payload is not valid {encoding}: {error}") from None
