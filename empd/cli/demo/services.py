"""The demo's two services: plain functions, as an operator would write them."""

from __future__ import annotations

import hashlib
from typing import Any

from empd.cli.demo import png


def thumbnail(payload: dict[str, Any]) -> bytes:
    """A PNG file, shrunk: `{"png": bytes, "width": pixels}` → the bytes of a smaller PNG file."""
    return png.encode(png.shrink(png.decode(payload["png"]), payload["width"]))


def checksum(payload: bytes) -> dict[str, Any]:
    """What arrived: its size and SHA-256."""
    return {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
