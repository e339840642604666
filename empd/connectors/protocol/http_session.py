"""The connections to one service: pool, TLS, credentials, redirects, bounded bodies. One exchange, no judgement."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp

from empd import __version__
from empd.connectors.failures import BadResponse, ConnectorError, ServiceUnavailable
from empd.connectors.protocol.auth import OAuth2Auth, bearer, headers_of, query_of
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.protocol.oauth import TokenSource

USER_AGENT = f"empd/{__version__}"
TOKEN_BYTES_MAX = 64 * 1024
KEEPALIVE_S = 30.0
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


class HTTPSession:
    """An aiohttp session with a service's settings. Made in the event loop; `close` lets go of all connections.

    `learn(secrets)` is told of tokens, so that they stay out of texts.
    """

    def __init__(self, config: HTTPConfig, slots: int, learn: Callable[[list[str]], None]) -> None:
        self._config = config
        self._credentials = headers_of(config.auth)
        self._query = query_of(config.auth)
        self._proxy = config.proxy or None
        connector = aiohttp.TCPConnector(
            limit=config.connections_max or max(1, slots), keepalive_timeout=KEEPALIVE_S, ssl=_tls(config)
        )
        self.aiohttp = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(
                total=config.total_timeout_s or None,
                sock_connect=config.connect_timeout_s,
                sock_read=config.read_timeout_s,
            ),
        )
        self._tokens: TokenSource | None = None
        if isinstance(config.auth, OAuth2Auth):
            self._tokens = TokenSource(config.auth, self._post_form, time.monotonic, learn)

    async def close(self) -> None:
        """Closes all connections, and waits until TLS has said goodbye."""
        if self._tokens is not None:
            await self._tokens.close()
        await self.aiohttp.close()

    async def send(self, outgoing: Outgoing) -> aiohttp.ClientResponse:
        """The answer's head; the caller releases or closes it. Follows redirects. Raises what aiohttp raises."""
        if self._tokens is None:
            return await self._sent(outgoing, self._credentials)
        token = await self._tokens.get()
        response = await self._sent(outgoing, bearer(token))
        if response.status != 401:
            return response
        response.release()
        return await self._sent(outgoing, bearer(await self._tokens.renew(token)))

    async def _sent(self, outgoing: Outgoing, credentials: Mapping[str, str]) -> aiohttp.ClientResponse:
        headers = {**outgoing.headers, **credentials} if credentials else outgoing.headers
        response = await self._exchange(outgoing, headers, self._query)
        if response.status in _REDIRECTS and self._config.redirects_max:
            return await self._follow(outgoing, credentials, response)
        return response

    async def _follow(
        self, outgoing: Outgoing, credentials: Mapping[str, str], response: aiohttp.ClientResponse
    ) -> aiohttp.ClientResponse:
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
                response = await self._exchange(outgoing, {**headers, **credentials}, self._query)
                continue
            headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
            origin, credentials = ("", "", 0), {}
            response = await self._exchange(outgoing, headers, {})
        return response

    async def _exchange(
        self, outgoing: Outgoing, headers: Mapping[str, str], query: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        body, params = outgoing.body, outgoing.params
        options: dict[str, Any] = {} if outgoing.timeout is None else {"timeout": outgoing.timeout}
        return await self.aiohttp.request(
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
        try:
            async with self.aiohttp.post(url, data=body, headers=headers, allow_redirects=False) as response:
                data = await read_bounded(response, TOKEN_BYTES_MAX)
                if response.status >= 500:
                    raise ServiceUnavailable(f"the token endpoint answered {response.status}")
                return data.decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServiceUnavailable("the token endpoint does not answer") from error


class TooLarge(BadResponse):
    """The answer is larger than the bound."""


async def read_bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The whole body, unpacked. Raises TooLarge, and what aiohttp raises, with the connection closed."""
    length = response.content_length
    try:
        if length is not None and length <= bytes_max and "Content-Encoding" not in response.headers:
            return await response.read()
        found = bytearray()
        if length is None or length <= bytes_max:
            async for chunk in response.content.iter_any():
                found += chunk
                if len(found) > bytes_max:
                    break
            else:
                return bytes(found)
    finally:
        # After the last byte the connection is back in the pool already, and this does nothing.
        response.close()
    raise TooLarge(f"the answer is larger than response_bytes_max ({bytes_max})", retry=False)


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: where credentials may go."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _tls(config: HTTPConfig) -> ssl.SSLContext | bool:
    if not config.verify_tls:
        return False
    if not config.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConnectorError(f"ca_file {config.ca_file} cannot be used: {error}", retry=False) from None
