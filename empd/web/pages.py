"""The first page and what it loads, read once."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

from aiohttp import web

_FILES = {"page.js": "text/javascript", "page.css": "text/css", "index.html": "text/html", "icon.svg": "image/svg+xml"}


@functools.cache
def content(name: str) -> tuple[bytes, str]:
    """(bytes, ETag) of a file of the page."""
    data = resources.files("empd.web").joinpath("page", name).read_bytes()
    return data, f'"{hashlib.blake2s(data, digest_size=12).hexdigest()}"'


def _answer(request: web.Request, name: str) -> web.Response:
    data, etag = content(name)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=data, content_type=_FILES[name], charset="utf-8", headers=headers)


async def index(request: web.Request) -> web.Response:
    """GET /: workers, queues and jobs, live."""
    return _answer(request, "index.html")


async def script(request: web.Request) -> web.Response:
    """GET /page.js."""
    return _answer(request, "page.js")


async def style(request: web.Request) -> web.Response:
    """GET /page.css."""
    return _answer(request, "page.css")


async def icon(request: web.Request) -> web.Response:
    """GET /icon.svg."""
    return _answer(request, "icon.svg")
