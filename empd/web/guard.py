"""Who may talk to the API from a browser: nobody but its own page.

A page of another site can send a browser's requests to 127.0.0.1 (cross-site request), or make its own name
point there (DNS rebinding). The first shows in Origin and Sec-Fetch-Site, the second in Host. No CORS header is
ever sent, so other origins cannot read answers either.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web

from empd.errors import FailureClass
from empd.web.problems import Handler, Problem

_READING = frozenset({"GET", "HEAD", "OPTIONS"})

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def own_names() -> frozenset[str]:
    """The names by which this host may be called."""
    host = socket.gethostname().lower()
    return frozenset({"localhost", "localhost.localdomain", host, host.split(".")[0], f"{host}.local"})


def host_name(netloc: str) -> str:
    """The host part of `HOST:PORT`, lower case, without brackets; "" when it is not one."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_own_host(netloc: str, names: frozenset[str]) -> bool:
    """True for an address literal (a rebound name is never one) and for the host's own names."""
    name = host_name(netloc)
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, netloc: str) -> bool:
    """True when the page at `origin` came from `netloc` itself."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == netloc.lower()


def build(names: frozenset[str]) -> web.middlewares._Middleware:  # type: ignore[name-defined]
    """The middleware for a host that is called `names` (in lower case)."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        netloc = request.headers.get("Host", "")
        if not is_own_host(netloc, names):
            raise Problem(FailureClass.AUTH, f"header.Host: {netloc!r} is not a name of this host", status=421)
        if request.method not in _READING:
            origin = request.headers.get("Origin")
            site = request.headers.get("Sec-Fetch-Site", "none")
            if (origin is not None and not is_same_origin(origin, netloc)) or site not in ("none", "same-origin"):
                raise Problem(FailureClass.AUTH, f"header.Origin: {origin!r} may not change anything here")
        return await handler(request)

    return middleware


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: every answer carries the security headers."""
    response.headers.update(SECURITY_HEADERS)
