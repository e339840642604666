"""Blobs over HTTP: uploads streamed into the arena, downloads with ranges and ETags."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from aiohttp import web

from empd.errors import BlobMissing, FailureClass
from empd.memory.arena import Arena, BlobWriter
from empd.payload import BlobRef
from empd.web import context, render
from empd.web.problems import Problem, invalid

CHUNK_BYTES = 256 * 1024
UPLOAD_STEP_BYTES = 1 << 20
KNOWN_MAX = 50_000
RETRY_AFTER_S = 30.0

_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII)
_BLOB_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MEDIA_TYPES = {"json": "application/json", "msgpack": "application/msgpack", "bytes": "application/octet-stream"}
_ENCODINGS = {"application/json": "json", "application/msgpack": "msgpack", "application/x-msgpack": "msgpack"}

T = TypeVar("T")


class Span(NamedTuple):
    """Bytes `start` up to, not including, `end`."""

    start: int
    end: int


class Content(NamedTuple):
    """What is sent: how much, how it is told from other content, what it is, how long it may be kept."""

    size: int
    etag: str
    media_type: str
    cache: str = "private, max-age=31536000, immutable"


class Unsatisfiable(ValueError):
    """A range that lies past the end."""


def parse_range(header: str | None, size: int) -> Span | None:
    """The one range that a Range header asks for; None: all of it (no header, another unit, several ranges, nonsense:
    a server may pass over those). Raises Unsatisfiable."""
    match = _RANGE.fullmatch((header or "").strip())
    if match is None:
        return None
    # Longer numbers are past any end, and int() refuses thousands of digits.
    first, last = (text if len(text) < 19 else "9" * 18 for text in match.groups())
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < start:
            return None
    elif last:
        start, end = max(0, size - int(last)), size
    else:
        return None
    if start >= size or start >= end:
        raise Unsatisfiable(f"bytes */{size}")
    return Span(start, end)


class Known:
    """What was uploaded or seen here, so that an id alone says the checksum and the encoding. Bounded."""

    def __init__(self) -> None:
        self._refs: OrderedDict[str, BlobRef] = OrderedDict()

    def add(self, ref: BlobRef) -> None:
        """Remembers a blob."""
        self._refs[ref.id] = ref
        self._refs.move_to_end(ref.id)
        if len(self._refs) > KNOWN_MAX:
            self._refs.popitem(last=False)

    def get(self, blob_id: str) -> BlobRef | None:
        """The blob, where it is remembered."""
        return self._refs.get(blob_id)


KNOWN = web.AppKey("known", Known)


async def in_thread(work: Callable[[], T]) -> T:
    """Runs what reads or writes files in a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


# --- uploads ---------------------------------------------------------------------------------------------------------


async def upload(request: web.Request) -> web.Response:
    """POST /v1/blobs: the body becomes a durable blob; the content type says how it is encoded."""
    ctx = context.of(request)
    encoding = _ENCODINGS.get(request.content_type, "bytes")
    await _check_room(ctx, request.content_length or 0)
    with await in_thread(functools.partial(ctx.arena.writer, True, encoding)) as writer:
        await _receive(request, writer, ctx.settings.spool_bytes_max)
        ref = await in_thread(writer.commit)
    request.app[KNOWN].add(ref)
    body = render.dumps(render.blob(ref))
    headers = {"Location": f"/v1/blobs/{ref.id}"}
    return web.Response(body=body, status=201, content_type="application/json", headers=headers)


async def _receive(request: web.Request, writer: BlobWriter, bytes_max: int) -> None:
    pending: list[bytes] = []
    pending_bytes = 0
    checked_at = 0
    async for chunk in request.content.iter_chunked(CHUNK_BYTES):
        pending.append(chunk)
        pending_bytes += len(chunk)
        if writer.size + pending_bytes > bytes_max:
            raise Problem(FailureClass.INVALID_INPUT, f"a blob has at most {bytes_max} bytes", status=413)
        if pending_bytes >= UPLOAD_STEP_BYTES:
            await in_thread(functools.partial(writer.write, b"".join(pending)))
            pending.clear()
            pending_bytes = 0
            if writer.size - checked_at >= 64 * UPLOAD_STEP_BYTES:
                checked_at = writer.size
                await _check_room(context.of(request), 0)
    await in_thread(functools.partial(writer.write, b"".join(pending)))


async def _check_room(ctx: context.Context, coming_bytes: int) -> None:
    """Refuses what the spool or the disk has no room for, before it is written."""
    settings = ctx.settings
    used, free = await in_thread(functools.partial(_room, ctx.arena, settings.state_dir))
    if used + coming_bytes > settings.spool_bytes_max:
        reason = f"the spool holds {used} of spool_bytes_max = {settings.spool_bytes_max} bytes"
    elif free - coming_bytes < settings.disk_free_min_bytes:
        reason = f"the disk has {free} bytes free, disk_free_min_bytes = {settings.disk_free_min_bytes}"
    else:
        return
    raise Problem(FailureClass.UNAVAILABLE, f"no room for the blob: {reason}", status=507, retry_after_s=RETRY_AFTER_S)


def _room(arena: Arena, state_dir: os.PathLike[str]) -> tuple[int, int]:
    return arena.usage(), shutil.disk_usage(state_dir).free


# --- downloads -------------------------------------------------------------------------------------------------------


async def download(request: web.Request) -> web.StreamResponse:
    """GET /v1/blobs/{id}: the bytes, or a range of them."""
    ref = await find(request, request.match_info["id"])
    return await send_blob(request, ref)


async def find(request: web.Request, blob_id: str) -> BlobRef:
    """The blob with this id. Raises Problem when there is none."""
    if not _BLOB_ID.fullmatch(blob_id):
        raise invalid("path.id", "a blob id has 32 hex digits in lower case")
    known = request.app[KNOWN].get(blob_id)
    if known is not None:
        return known
    found = await in_thread(functools.partial(context.of(request).arena.find, blob_id))
    if found is None:
        raise Problem(FailureClass.NOT_FOUND, f"there is no blob {blob_id} here (any more)")
    request.app[KNOWN].add(found)
    return found


async def send_blob(request: web.Request, ref: BlobRef) -> web.StreamResponse:
    """A blob's bytes as the answer."""
    arena = context.of(request).arena
    try:
        fd = await in_thread(functools.partial(arena.open, ref))
    except BlobMissing as error:
        raise Problem(FailureClass.NOT_FOUND, str(error)) from None
    try:
        media_type = _MEDIA_TYPES.get(ref.encoding, _MEDIA_TYPES["bytes"])
        return await send_file(request, fd, Content(ref.size, f'"{ref.id}"', media_type))
    finally:
        os.close(fd)


async def send_file(request: web.Request, fd: int, content: Content) -> web.StreamResponse:
    """An open file's bytes as the answer, or a range of them."""
    response, span = _head(request, content)
    await response.prepare(request)
    position = span.start
    while request.method != "HEAD" and position < span.end:
        count = min(CHUNK_BYTES, span.end - position)
        data = await in_thread(functools.partial(os.pread, fd, count, position))
        if not data:
            break
        await response.write(data)
        position += len(data)
    await response.write_eof()
    return response


async def send_bytes(request: web.Request, data: bytes, etag: str, media_type: str) -> web.StreamResponse:
    """Bytes in memory as the answer, with the same ranges."""
    response, span = _head(request, Content(len(data), etag, media_type))
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(data[span.start : span.end])
    await response.write_eof()
    return response


def _head(request: web.Request, content: Content) -> tuple[web.StreamResponse, Span]:
    """The head of an answer, and the bytes to send: 200, 206, 304, or 416 as a Problem."""
    size, etag, media_type, cache = content
    headers = {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": cache}
    if _names(request.headers.get("If-None-Match", ""), etag):
        return web.StreamResponse(status=304, headers=headers), Span(0, 0)
    condition = request.headers.get("If-Range")
    header = request.headers.get("Range") if condition in (None, etag) else None
    try:
        span = parse_range(header, size)
    except Unsatisfiable as error:
        problem = Problem(FailureClass.INVALID_INPUT, f"header.Range: the content has {size} bytes", status=416)
        problem.headers["Content-Range"] = str(error)
        raise problem from None
    response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
    if span is not None:
        response.headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
    span = span or Span(0, size)
    response.content_type = media_type
    response.content_length = span.end - span.start
    return response, span


def _names(header: str, etag: str) -> bool:
    return any(each.strip().removeprefix("W/") in (etag, "*") for each in header.split(","))
