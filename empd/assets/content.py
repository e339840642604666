"""What a connector gives to be saved, read piece by piece, with its size and hash counted on the way."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
import stat
import urllib.parse
from collections.abc import AsyncIterable, AsyncIterator
from typing import BinaryIO, Protocol

from empd.asset import AssetContent, AssetFailed
from empd.assets.room import Room, Share
from empd.errors import FailureClass

BLOCK_BYTES = 2 << 20
"""What is read and hashed at once where the store does not ask for more."""

_DATA_URL = re.compile(r"data:([^,]*?)(;base64)?,", re.IGNORECASE)
_SMALL_BYTES = 256 * 1024
"""Less than this is not worth a thread."""

_LATER_BYTES_MIN = 1 << 20
"""A store takes only so many blocks, so they are not made too small."""


class Source(Protocol):
    """Bytes from somewhere. `fill` puts the next ones into a room, and says how many: none at the end."""

    async def fill(self, room: memoryview) -> int: ...
    def close(self) -> None: ...


class Memory:
    """Bytes that are there already."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")

    async def fill(self, room: memoryview) -> int:
        """The next bytes, copied."""
        piece, self._view = self._view[: len(room)], self._view[len(room) :]
        room[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Lets go of the bytes."""
        self._view.release()


class File:
    """A file, or an open binary file of whoever gives it (who closes it too)."""

    def __init__(self, file: BinaryIO, *, owned: bool) -> None:
        self._file = file
        self._owned = owned

    async def fill(self, room: memoryview) -> int:
        """The next bytes, read in a thread."""
        return await asyncio.to_thread(self._fill, room)

    def _fill(self, room: memoryview) -> int:
        if hasattr(self._file, "readinto"):  # what is given may only look like a file
            return int(self._file.readinto(room))
        data = self._file.read(len(room))
        room[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes what was opened here."""
        if self._owned:
            self._file.close()


class Stream:
    """Chunks of any size as they come."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks: AsyncIterator[bytes] = aiter(chunks)
        self._rest = memoryview(b"")

    async def fill(self, room: memoryview) -> int:
        """The rest of the last chunk, or the next chunk that is not empty."""
        while not self._rest:
            try:
                self._rest = memoryview(await anext(self._chunks)).cast("B")
            except StopAsyncIteration:
                return 0
        piece, self._rest = self._rest[: len(room)], self._rest[len(room) :]
        room[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """The stream belongs to whoever gave it."""


class Block:
    """A part of the content."""

    def __init__(self, data: memoryview, share: Share) -> None:
        self.data = data
        self._share = share

    def drop(self) -> None:
        """Nobody needs it any more; its memory is for others."""
        self.data = memoryview(b"")
        self._share.give_all()


class Intake:
    """Content taken in blocks, whose memory comes out of a room that others use too.

    `size_bytes` and `sha256` are of what was taken so far; `ended`: that is all. Who has used a block drops it.
    """

    def __init__(self, source: Source, room: Room) -> None:
        self._source = source
        self._room = room
        self._blocks: list[Block] = []
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.ended = False

    @property
    def sha256(self) -> str:
        """64 hex digits."""
        return self._hash.hexdigest()

    async def block(self, count: int = BLOCK_BYTES) -> Block:
        """The next `count` bytes: fewer at the end, and later than the first also where others need the room."""
        share = Share(self._room)
        try:
            # The memory is got here: what a thread allocates to read into, it keeps.
            buffer, have = await (self._later(share, count) if self.size_bytes else self._first(share, count))
            self.ended = have < len(buffer)
            if 2 * have < len(buffer):
                buffer = buffer[:have]
            share.keep(len(buffer))
            data = memoryview(buffer)[:have]
            if have < _SMALL_BYTES:
                self._hash.update(data)
            else:
                await asyncio.to_thread(self._hash.update, data)
        except BaseException:  # raised again
            share.give_all()
            raise
        self.size_bytes += have
        block = Block(data, share)
        self._blocks = [earlier for earlier in self._blocks if earlier.data] + [block]
        return block

    async def _first(self, share: Share, count: int) -> tuple[bytearray, int]:
        """Little memory to begin with: most content is small, and the rest may come slowly."""
        size, have = min(count, _SMALL_BYTES), 0
        await share.take(size)
        buffer = bytearray(size)
        while (have := await self._fill(buffer, have)) == len(buffer) < count:
            size = min(2 * len(buffer), count)
            if not share.take_now(size):
                await share.take_spare()
                size = count
            begun, buffer = buffer, bytearray(size)
            buffer[:have] = begun
            del begun
            share.keep(0 if share.is_spare else size)
        return buffer, have

    async def _later(self, share: Share, count: int) -> tuple[bytearray, int]:
        size = min(count, _LATER_BYTES_MIN)
        await share.take(size)
        while size < count and share.take_now(more := min(size, count - size)):
            size += more
        buffer = bytearray(size)
        return buffer, await self._fill(buffer, 0)

    async def _fill(self, buffer: bytearray, have: int) -> int:
        view = memoryview(buffer)
        while have < len(view) and (count := await self._source.fill(view[have:])):
            have += count
        return have

    def close(self) -> None:
        """Closes the source; no block is used any more."""
        for block in self._blocks:
            block.drop()
        self._source.close()


async def take(content: AssetContent, room: Room) -> Intake:
    """Opens content, to be read into `room`. Raises AssetFailed: broken base64, no regular file, a wrong type."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        return Intake(Memory(content), room)
    if isinstance(content, str):
        if len(content) < _SMALL_BYTES:
            return Intake(Memory(decode_text(content)), room)
        return Intake(Memory(await asyncio.to_thread(decode_text, content)), room)
    if isinstance(content, os.PathLike):
        return Intake(File(await asyncio.to_thread(_open, content), owned=True), room)
    if isinstance(content, AsyncIterable):
        return Intake(Stream(content), room)
    if hasattr(content, "read"):
        return Intake(File(content, owned=False), room)
    raise AssetFailed(FailureClass.INTERNAL, f"a {type(content).__name__} cannot be saved as an asset", retry=False)


def decode_text(text: str) -> bytes:
    """The bytes behind base64 or a data URL. Raises AssetFailed."""
    head = _DATA_URL.match(text)
    if head is not None and head[2] is None:
        return urllib.parse.unquote_to_bytes(text[head.end() :])
    try:
        encoded = (text[head.end() :] if head else text).encode("ascii")
        if any(space in encoded for space in b"\r\n \t"):
            encoded = encoded.translate(None, b"\r\n \t")
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise AssetFailed(FailureClass.BAD_RESPONSE, f"neither base64 nor a data URL: {error}", retry=False) from None


def _open(path: os.PathLike[str]) -> BinaryIO:
    name = os.path.basename(path)
    try:
        # Not blocking: opening a named pipe would wait for its writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise AssetFailed(FailureClass.NOT_FOUND, f"the file {name!r} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AssetFailed(FailureClass.NOT_FOUND, f"{name!r} is not a regular file", retry=False)
    return open(fd, "rb", buffering=0)
