"""How a connector shows who it is: API key, Bearer, Basic, OAuth2. The `auth` object of a service's configuration.

Pure: from configuration to headers and query. OAuth2's tokens are fetched in `oauth`, and shown by `identity`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

_NONE: Mapping[str, str] = {}


class ApiKeyAuth(msgspec.Struct, tag="api_key", forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`{"type": "api_key", "api_key": …}`: in a header (`prefix` before it), or in the query where that is named."""

    api_key: str
    header: str = "X-API-Key"
    prefix: str = ""
    query: str = ""


class BearerAuth(msgspec.Struct, tag="bearer", forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`{"type": "bearer", "token": …}` (RFC 6750)."""

    token: str


class BasicAuth(msgspec.Struct, tag="basic", forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`{"type": "basic", "username": …, "password": …}` (RFC 7617)."""

    username: str
    password: str


class OAuth2Auth(msgspec.Struct, tag="oauth2", forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`{"type": "oauth2", "token_url": …, "client_id": …}` (RFC 6749).

    The client's credentials get the token, or `refresh_token` does where it is given. `client_in`: where the token
    endpoint reads the client's secret. `extra` goes into the token request as it is (`audience` and the like). The
    token is shown in the Authorization header, or in the query under the name in `query` (RFC 6750, 2.3).
    """

    token_url: str
    client_id: str
    client_secret: str = ""
    refresh_token: str = ""
    scope: tuple[str, ...] = ()
    client_in: Literal["header", "body"] = "header"
    extra: dict[str, str] = {}
    query: str = ""


AuthConfig = ApiKeyAuth | BearerAuth | BasicAuth | OAuth2Auth


class Credentials(NamedTuple):
    """What one call or connection shows; `token` is OAuth2's, in one of the two."""

    headers: Mapping[str, str] = _NONE
    query: Mapping[str, str] = _NONE
    token: str = ""


def with_token(auth: OAuth2Auth, token: str) -> Credentials:
    """A token where the service reads it."""
    return Credentials(_NONE, {auth.query: token}, token) if auth.query else Credentials(bearer(token), _NONE, token)


def headers_of(auth: AuthConfig | None) -> dict[str, str]:
    """The headers of every call; none for OAuth2, whose token is not known yet."""
    match auth:
        case ApiKeyAuth() if not auth.query:
            return {auth.header: auth.prefix + auth.api_key}
        case BearerAuth():
            return bearer(auth.token)
        case BasicAuth():
            return {"Authorization": basic(auth.username, auth.password)}
    return {}


def query_of(auth: AuthConfig | None) -> Mapping[str, str]:
    """What every call has in its query."""
    return {auth.query: auth.prefix + auth.api_key} if isinstance(auth, ApiKeyAuth) and auth.query else _NONE


def secrets_of(auth: AuthConfig | None) -> list[str]:
    """What must never be seen in a text."""
    match auth:
        case ApiKeyAuth():
            return [auth.api_key]
        case BearerAuth():
            return [auth.token]
        case BasicAuth():
            return [auth.password, basic(auth.username, auth.password).removeprefix("Basic ")]
        case OAuth2Auth():
            encoded = basic(auth.client_id, auth.client_secret).removeprefix("Basic ")
            return [auth.client_secret, auth.refresh_token, encoded] if auth.client_secret else [auth.refresh_token]
    return []


def bearer(token: str) -> dict[str, str]:
    """The header of a token."""
    return {"Authorization": f"Bearer {token}"}


def basic(username: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
