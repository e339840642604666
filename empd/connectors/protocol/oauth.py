"""OAuth2 tokens (RFC 6749: client credentials, refresh), read and written by oauthlib.

One token serves all jobs of a connector: while it is being fetched, whoever needs it waits for the same fetch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlsplit

import oauthlib.oauth2
from oauthlib.oauth2.rfc6749 import errors

from empd.connectors.failures import AuthFailed, BadResponse, ConnectorError
from empd.connectors.protocol.auth import OAuth2Auth, basic

EARLY_S = 30.0
"""A token is renewed so long before it expires (at most in the last half of its life)."""

Post = Callable[[str, dict[str, str], str], Awaitable[str]]
"""Posts a form: (url, headers, body) → the answer's body, whatever its status. Raises ConnectorError."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Token(NamedTuple):
    """A token and when to renew it, on the clock of the source."""

    value: str
    renew_s: float


class TokenSource:
    """Gives the present token; `clock` is steady seconds, `learn` is told what must be kept out of texts."""

    def __init__(
        self, config: OAuth2Auth, post: Post, clock: Callable[[], float], learn: Callable[[list[str]], None]
    ) -> None:
        if urlsplit(config.token_url).scheme != "https" and urlsplit(config.token_url).hostname not in _LOOPBACK:
            raise AuthFailed(f"token_url {config.token_url} is not https: a secret would travel in the open")
        self._config = config
        self._post = post
        self._clock = clock
        self._learn = learn
        self._client = oauthlib.oauth2.BackendApplicationClient(config.client_id)
        self._refresh_token = config.refresh_token
        self._token: Token | None = None
        self._fetching: asyncio.Task[Token] | None = None

    async def get(self) -> str:
        """A token that is good now."""
        token = self._token
        if token is not None and self._clock() < token.renew_s:
            return token.value
        return await self._fetched()

    async def renew(self, stale: str) -> str:
        """Another token than `stale`, which the service did not accept. Those who ask together get the same one."""
        if self._token is not None and self._token.value != stale:
            return await self.get()
        self._token = None
        return await self._fetched()

    async def close(self) -> None:
        """Ends a fetch under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))

    async def _fetched(self) -> str:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        # Shielded: one job that is cancelled does not take the token from the others.
        return (await asyncio.shield(self._fetching)).value

    async def _fetch(self) -> Token:
        config, refresh = self._config, self._refresh_token
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        fields: dict[str, Any] = dict(config.extra)
        if config.client_in == "header":
            headers["Authorization"] = basic(quote_plus(config.client_id), quote_plus(config.client_secret))
        else:
            fields |= {"client_id": config.client_id, "client_secret": config.client_secret}
        scope = list(config.scope) or None
        if refresh:
            body = self._client.prepare_refresh_body(refresh_token=refresh, scope=scope, **fields)
        else:
            body = self._client.prepare_request_body(scope=scope, include_client_id=False, **fields)
        text = await self._post(config.token_url, headers, body)
        answer = self._read(text)
        value = str(answer["access_token"])
        self._refresh_token = str(answer.get("refresh_token") or refresh)
        self._learn([value, self._refresh_token])
        lifetime_s = _seconds(answer.get("expires_in"))
        self._token = Token(value, self._clock() + lifetime_s - min(EARLY_S, lifetime_s / 2))
        return self._token

    def _read(self, text: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._client.parse_request_body_response(text, scope=self._config.scope or None)
        except errors.MissingTokenError:
            raise BadResponse("the token endpoint answered without a token") from None
        except (errors.TemporarilyUnavailableError, errors.ServerError) as error:
            raise ConnectorError(f"the token endpoint answered {error.error}", retry=True) from None
        except errors.OAuth2Error as error:
            raise AuthFailed(f"the token endpoint answered {error.error}") from None
        except (ValueError, KeyError, TypeError, Warning):
            raise BadResponse("the token endpoint's answer cannot be read") from None
        return answer


def _seconds(value: Any) -> float:
    """A token's life; an hour where the endpoint does not say (RFC 6749, 5.1 only recommends it)."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return 3600.0
