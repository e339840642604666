"""The connections to one service: pool, TLS, credentials, redirects, bounded bodies. One exchange, no judgement."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp

from empd import __version__
from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.protocol.auth import Credentials
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.protocol.http_short import Response, ShortWay
from empd.connectors.protocol.identity import Identity, post_form

USER_AGENT = f"empd/{__version__}"
KEEPALIVE_S = 30.0
ASIDE_KEEPALIVE_S = 120.0
"""Long enough that a cancel finds the connection that the last health check was made on."""

_REDIRECTS = (301, 302, 303, 307, 308)
_KEEP_METHOD = (307, 308)
_HARMLESS = ("accept", "content-type")
"""Headers that may go to another host."""


class Outgoing(NamedTuple):
    """One request as it goes out. `headers` without credentials; `body` makes the body of each try."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | Callable[[], Any] | None
    params: Mapping[str, str] | None
    timeout: aiohttp.ClientTimeout | None
    aside: bool = False


class HTTPSession:
    """aiohttp sessions with a service's settings. Made in the event loop; `close` lets go of all connections.

    Calls that must not wait until a job lets go of a connection go `aside`, over connections of their own.
    `learn(secrets)` is told of tokens, so that they stay out of texts.
    """

    def __init__(self, config: HTTPConfig, slots: int, learn: Callable[[list[str]], None]) -> None:
        self._config = config
        self._proxy = config.proxy or None
        self.identity = Identity(config.auth, learn, self._post_form)
        tls = _tls(config)
        slots = max(1, slots)
        self.aiohttp = _session(config, tls, config.connections_max or slots, KEEPALIVE_S)
        self._aside = _session(config, tls, slots + 1, ASIDE_KEEPALIVE_S)
        self._short = ShortWay(self.aiohttp, USER_AGENT)

    async def close(self) -> None:
        """Closes all connections, and waits until TLS has said goodbye."""
        await self.identity.close()
        await self.aiohttp.close()
        await self._aside.close()

    async def send(self, outgoing: Outgoing) -> Response:
        """The answer's head; the caller releases or closes it. Follows redirects. Raises what aiohttp raises."""
        identity = self.identity
        shown = await identity.present()
        response = await self._sent(outgoing, shown)
        if response.status != 401 or not identity.renewable:
            return response
        response.release()
        return await self._sent(outgoing, await identity.renew(shown))

    async def _sent(self, outgoing: Outgoing, shown: Credentials) -> Response:
        headers = {**outgoing.headers, **shown.headers} if shown.headers else outgoing.headers
        response = await self._exchange(outgoing, headers, shown.query)
        if response.status in _REDIRECTS and self._config.redirects_max:
            return await self._follow(outgoing, shown, response)
        return response

    async def _follow(self, outgoing: Outgoing, shown: Credentials, response: Response) -> Response:
        left = self._config.redirects_max
        headers, origin = outgoing.headers, origin_of(outgoing.url)
        while response.status in _REDIRECTS and "Location" in response.headers and left:
            left -= 1
            target = urljoin(outgoing.url, response.headers["Location"])
            response.release()
            if urlsplit(outgoing.url).scheme == "https" and urlsplit(target).scheme != "https":
                raise BadResponse("the service redirects away from https", retry=False)
            if response.status not in _KEEP_METHOD and outgoing.method != "HEAD":
                outgoing = outgoing._replace(method="GET", body=None)
            # What the query of the first address was, the service has put into the new one.
            outgoing = outgoing._replace(url=target, params=None)
            if origin_of(target) == origin:
                response = await self._exchange(outgoing, {**headers, **shown.headers}, shown.query)
                continue
            headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
            origin, shown = ("", "", 0), Credentials()
            response = await self._exchange(outgoing, headers, {})
        return response

    async def _exchange(self, outgoing: Outgoing, headers: Mapping[str, str], query: Mapping[str, str]) -> Response:
        body, params = outgoing.body, outgoing.params
        wants_more = params or query or outgoing.timeout or outgoing.aside or self._proxy
        if not wants_more and (body is None or isinstance(body, bytes)):
            head = self._short.head(outgoing.method, outgoing.url, headers, body)
            if head is not None:
                return await self._short.send(head, body)
        options: dict[str, Any] = {} if outgoing.timeout is None else {"timeout": outgoing.timeout}
        session = self._aside if outgoing.aside else self.aiohttp
        return await session.request(
            outgoing.method,
            outgoing.url,
            data=body() if callable(body) else body,
            params={**(params or {}), **query} if params or query else None,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
            **options,
        )

    async def _post_form(self, url: str, headers: dict[str, str], body: str) -> str:
        return await post_form(self._aside, url, headers, body)


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: where credentials may go."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _session(
    config: HTTPConfig, tls: ssl.SSLContext | bool, connections_max: int, keepalive_s: float
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections_max, keepalive_timeout=keepalive_s, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT},
        timeout=aiohttp.ClientTimeout(
            total=config.total_timeout_s or None,
            sock_connect=config.connect_timeout_s,
            sock_read=config.read_timeout_s,
        ),
    )


def _tls(config: HTTPConfig) -> ssl.SSLContext | bool:
    if not config.verify_tls:
        return False
    if not config.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConnectorError(f"ca_file {config.ca_file} cannot be used: {error}", retry=False) from None
