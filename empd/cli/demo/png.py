"""Just enough PNG: 8-bit grey, RGB and RGBA pictures without interlacing, read, shrunk and written."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_COLOUR_TYPES = {channels: colour for colour, channels in _CHANNELS.items()}
PIXELS_MAX = 64 << 20


class Picture(NamedTuple):
    """Rows from the top, each `width * channels` bytes."""

    width: int
    height: int
    channels: int
    rows: list[bytes]


def decode(data: bytes) -> Picture:
    """The picture in a PNG file. Raises ValueError for what is none, damaged, or of a kind not read here."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG file")
    header, compressed = b"", bytearray()
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            compressed += body
    if len(header) != 13:
        raise ValueError("a PNG file without its header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or colour not in _CHANNELS or interlaced:
        raise ValueError("only 8-bit grey, RGB and RGBA PNG files without interlacing are read")
    if not 0 < width * height <= PIXELS_MAX:
        raise ValueError(f"{width} × {height} pixels; at most {PIXELS_MAX} are read")
    channels = _CHANNELS[colour]
    stride = width * channels
    # No more is unpacked than the header announces.
    try:
        raw = zlib.decompressobj().decompress(bytes(compressed), (stride + 1) * height)
    except zlib.error as error:
        raise ValueError(f"a PNG file with damaged pixels: {error}") from None
    if len(raw) != (stride + 1) * height:
        raise ValueError("a PNG file that ends early")
    return Picture(width, height, channels, list(_unfiltered(raw, stride, channels)))


def encode(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, _COLOUR_TYPES[picture.channels], 0, 0, 0)
    rows = b"".join(b"\x01" + _subtracted(row, picture.channels) for row in picture.rows)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, body) for kind, body in parts)


def shrink(picture: Picture, width: int) -> Picture:
    """The picture at most `width` pixels wide: every new pixel is the mean of those it covers."""
    if picture.width <= width:
        return picture
    height = max(1, picture.height * width // picture.width)
    channels = picture.channels
    lefts = [x * picture.width // width for x in range(width + 1)]
    tops = [y * picture.height // height for y in range(height + 1)]
    rows = []
    for top, bottom in pairwise(tops):
        # First down the columns, then along the row: each source byte is touched once.
        sums = [sum(column) for column in zip(*picture.rows[top:bottom], strict=True)]
        row = bytearray()
        for left, right in pairwise(lefts):
            count = (right - left) * (bottom - top)
            for channel in range(channels):
                row.append(sum(sums[left * channels + channel : right * channels : channels]) // count)
        rows.append(bytes(row))
    return Picture(width, height, channels, rows)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if data[at + 8 + size : at + 12 + size] != struct.pack(">I", zlib.crc32(kind + body)):
            raise ValueError(f"a PNG file with a damaged {kind.decode('latin-1')} chunk")
        yield kind, body
        at += 12 + size


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _subtracted(row: bytes, channels: int) -> bytes:
    return bytes((now - before) & 255 for now, before in zip(row, bytes(channels) + row, strict=False))


def _unfiltered(raw: bytes, stride: int, channels: int) -> Iterator[bytes]:
    above = bytes(stride)
    for start in range(0, len(raw), stride + 1):
        row = bytearray(raw[start + 1 : start + 1 + stride])
        _undo(raw[start], row, above, channels)
        above = bytes(row)
        yield above


def _undo(kind: int, row: bytearray, above: bytes, channels: int) -> None:
    """One row's filter, in place."""
    if kind == 2:
        row[:] = bytes((now + up) & 255 for now, up in zip(row, above, strict=True))
    elif kind in (1, 3, 4):
        for at, up in enumerate(above):
            left, corner = (row[at - channels], above[at - channels]) if at >= channels else (0, 0)
            guess = left if kind == 1 else (left + up) // 2 if kind == 3 else _paeth(left, up, corner)
            row[at] = (row[at] + guess) & 255
    elif kind != 0:
        raise ValueError(f"a PNG file with filter {kind}")


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))
