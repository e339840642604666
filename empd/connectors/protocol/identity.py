"""Who a connector is to its service: what its configuration says once for all, or an OAuth2 token of the moment.

The same for each protocol: HTTP shows it with each request, WebSocket at each connect, gRPC in each call's metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import aiohttp

from empd.connectors.failures import ServiceUnavailable
from empd.connectors.protocol.auth import AuthConfig, Credentials, OAuth2Auth, headers_of, query_of, with_token
from empd.connectors.protocol.http_body import read_bounded
from empd.connectors.protocol.oauth import Post, TokenSource

TOKEN_BYTES_MAX = 64 * 1024
TOKEN_S_MAX = 30.0


async def post_form(session: aiohttp.ClientSession, url: str, headers: dict[str, str], body: str) -> str:
    """What a token endpoint answers. Raises ConnectorError."""
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            data = await read_bounded(response, TOKEN_BYTES_MAX)
            if response.status >= 500:
                raise ServiceUnavailable(f"the token endpoint answered {response.status}")
            return data.decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ServiceUnavailable("the token endpoint does not answer") from error


async def post_alone(url: str, headers: dict[str, str], body: str) -> str:
    """The same over a connection of its own: a token is fetched once an hour or so."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TOKEN_S_MAX)) as session:
        return await post_form(session, url, headers, body)


class Identity:
    """`learn(secrets)` is told of tokens, so that they stay out of texts. Raises AuthFailed for a token endpoint that
    secrets must not be sent to."""

    def __init__(self, auth: AuthConfig | None, learn: Callable[[list[str]], None], post: Post = post_alone) -> None:
        self._fixed = Credentials(headers_of(auth), query_of(auth))
        self._oauth: tuple[OAuth2Auth, TokenSource] | None = None
        if isinstance(auth, OAuth2Auth):
            self._oauth = auth, TokenSource(auth, post, time.monotonic, learn)

    @property
    def renewable(self) -> bool:
        """Whether there are others where these are not accepted."""
        return self._oauth is not None

    async def present(self) -> Credentials:
        """What is to be shown now. Raises ConnectorError when there is no token to be had."""
        if self._oauth is None:
            return self._fixed
        auth, tokens = self._oauth
        return with_token(auth, await tokens.get())

    async def renew(self, refused: Credentials) -> Credentials:
        """Others than `refused`, which the service did not accept; the same ones where there are no others."""
        if self._oauth is None:
            return refused
        auth, tokens = self._oauth
        return with_token(auth, await tokens.renew(refused.token))

    async def close(self) -> None:
        """Ends a fetch under way."""
        if self._oauth is not None:
            await self._oauth[1].close()
