"""Assets that the mapping keeps on this machine, over HTTP: downloads with ranges and ETags."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from empd.asset import FOLDER_PATTERN
from empd.assets.local import expire
from empd.errors import FailureClass
from empd.media import HEAD_BYTES, media_type
from empd.web import context
from empd.web.blobs import Content, in_thread, send_file
from empd.web.duty import Duty
from empd.web.problems import Problem

EVERY_S = 600.0
EVERY_S_MIN = 0.5

CACHE = "private, no-cache"
"""An asset that a payload named may be written again: whoever keeps it asks whether it is still the same."""

_NAME = re.compile(FOLDER_PATTERN)


class AssetRetention(Duty):
    """A background duty: drops assets of this machine that are past `assets_keep_s`."""

    name = "asset-retention"

    def __init__(self, root: Path, keep_s: float) -> None:
        super().__init__()
        # It is there from the start, so that a backup needs no question whether anything was saved yet.
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        self._keep_s = keep_s
        self._every_s = min(EVERY_S, max(keep_s / 4, EVERY_S_MIN))

    async def _run(self) -> None:
        while self._keep_s:
            await asyncio.to_thread(expire, self._root, self._keep_s)
            await asyncio.sleep(self._every_s)


class Opened(NamedTuple):
    """An asset, open for reading."""

    fd: int
    content: Content


async def download_asset(request: web.Request) -> web.StreamResponse:
    """GET /v1/assets/{name}: the bytes, or a range of them. `name` may have slashes."""
    name = request.match_info["name"]
    root = context.of(request).settings.assets_dir
    found = await in_thread(functools.partial(_open, root, name))
    if found is None:
        raise Problem(FailureClass.NOT_FOUND, f"there is no asset {name[:200]!r} here")
    try:
        return await send_file(request, found.fd, found.content)
    finally:
        os.close(found.fd)


def _open(root: Path, name: str) -> Opened | None:
    # Hidden files are the store's own; nothing that could lead out of it is a name.
    if not _NAME.fullmatch(name):
        return None
    try:
        fd = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    head = os.pread(fd, HEAD_BYTES, 0)
    etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
    kind = media_type(head, whole=len(head) == status.st_size)
    return Opened(fd, Content(status.st_size, etag, kind, CACHE))
