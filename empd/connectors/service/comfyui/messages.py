"""The frames of ComfyUI's WebSocket (`/ws?clientId=…`), decoded. Source: its `server.py` and `protocol.py`, 0.3.64.

A text frame is `{"type": …, "data": {…}}`. A binary one begins with a big-endian u32:

    1  preview               u32 image kind (1 JPEG, 2 PNG), image
    3  text of a node        u32 length, node id, UTF-8 text
    4  preview, attributed   u32 length, JSON with node and prompt, image
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgspec

FEATURES = '{"type":"feature_flags","data":{"supports_preview_metadata":true}}'
"""The first message of a client that wants attributed previews."""

_IMAGE_KINDS = {1: "image/jpeg", 2: "image/png"}
_PREVIEW, _TEXT, _ATTRIBUTED = 1, 3, 4


class Message(NamedTuple):
    """A text frame. `prompt_id` is empty where it names none."""

    kind: str
    prompt_id: str
    data: dict[str, Any]


class Picture(NamedTuple):
    """An image that was sent as it is: a preview, or a final one of `SaveImageWebsocket`.

    `node` and `prompt_id` are empty in frames of type 1: such a picture is of whatever runs.
    """

    node: str
    prompt_id: str
    media_type: str
    image: bytes


class NodeText(NamedTuple):
    """What a node says about its progress in words."""

    node: str
    text: str


class _Envelope(msgspec.Struct):
    type: str = ""
    data: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_about = msgspec.json.Decoder(dict[str, Any]).decode


def read(frame: str | bytes) -> Message | Picture | NodeText | None:
    """A frame's meaning; None for one of an unknown or broken form."""
    try:
        if isinstance(frame, str):
            envelope = _decode(frame)
            return Message(envelope.type, str(envelope.data.get("prompt_id") or ""), envelope.data)
        return _read_binary(memoryview(frame))
    except (msgspec.DecodeError, struct.error, UnicodeDecodeError):
        return None


def _read_binary(frame: memoryview) -> Picture | NodeText | None:
    kind, number = struct.unpack_from(">II", frame)
    rest = frame[8:]
    if kind == _PREVIEW:
        return Picture("", "", _IMAGE_KINDS.get(number, ""), bytes(rest))
    if number > len(rest):
        return None
    head, body = bytes(rest[:number]), bytes(rest[number:])
    if kind == _TEXT:
        return NodeText(head.decode(), body.decode())
    if kind == _ATTRIBUTED:
        about = _decode_about(head)
        node, prompt_id = about.get("node_id"), about.get("prompt_id")
        return Picture(str(node or ""), str(prompt_id or ""), str(about.get("image_type") or ""), body)
    return None
