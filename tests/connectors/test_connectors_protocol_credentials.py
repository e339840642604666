"""What a service is shown, without a socket: keys, tokens and their renewal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from empd.connectors.failures import AuthFailed, BadResponse, ConnectorError
from empd.connectors.protocol import auth
from empd.connectors.protocol.oauth import TokenSource

# --- credentials -----------------------------------------------------------------------------------------------------


def test_credentials_as_headers_and_query() -> None:
    assert auth.headers_of(auth.ApiKeyAuth(api_key="k", header="X-Goog-Api-Key")) == {"X-Goog-Api-Key": "k"}
    assert auth.headers_of(auth.ApiKeyAuth(api_key="k", header="Authorization", prefix="Key ")) == {
        "Authorization": "Key k"
    }
    in_query = auth.ApiKeyAuth(api_key="k", query="token")
    assert (auth.headers_of(in_query), auth.query_of(in_query)) == ({}, {"token": "k"})
    assert auth.headers_of(auth.BearerAuth(token="t")) == {"Authorization": "Bearer t"}
    assert auth.headers_of(auth.BasicAuth(username="Aladdin", password="open sesame")) == {
        "Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    }
    assert auth.headers_of(None) == {}
    assert "open sesame" in auth.secrets_of(auth.BasicAuth(username="Aladdin", password="open sesame"))


class TokenEndpoint:
    """Answers token requests in order, and keeps them."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, str], str]] = []

    async def post(self, url: str, headers: dict[str, str], body: str) -> str:
        self.asked.append((headers, body))
        await asyncio.sleep(0)
        return self.answers[len(self.asked) - 1]


def token(value: str, **more: Any) -> str:
    fields = {"access_token": value, "token_type": "Bearer", "expires_in": 100, **more}
    return str(fields).replace("'", '"')


def source(endpoint: TokenEndpoint, clock: Any, **config: Any) -> TokenSource:
    whole = {"token_url": "https://example.test/token", "client_id": "me", "client_secret": "secret", **config}
    return TokenSource(auth.OAuth2Auth(**whole), endpoint.post, clock, lambda secrets: None)


def test_one_fetch_serves_all_and_one_renewal_too() -> None:
    async def run() -> None:
        now_s = 0.0
        endpoint = TokenEndpoint(token("first"), token("second"), token("third"))
        tokens = source(endpoint, lambda: now_s, scope=("a", "b"), extra={"audience": "x"})
        assert set(await asyncio.gather(*(tokens.get() for _ in range(20)))) == {"first"}
        assert set(await asyncio.gather(*(tokens.renew("first") for _ in range(20)))) == {"second"}
        now_s = 69.0
        assert await tokens.get() == "second"
        now_s = 71.0
        assert await tokens.get() == "third"
        headers, body = endpoint.asked[0]
        assert headers["Authorization"] == auth.basic("me", "secret")
        assert {"grant_type=client_credentials", "scope=a+b", "audience=x"} <= set(body.split("&"))
        assert len(endpoint.asked) == 3

    asyncio.run(run())


def test_a_refresh_token_is_used_and_replaced() -> None:
    async def run() -> None:
        endpoint = TokenEndpoint(token("one", refresh_token="r2"), token("two"))
        tokens = source(endpoint, lambda: 0.0, refresh_token="r1", client_in="body")
        await tokens.get()
        await tokens.renew("one")
        assert "refresh_token=r1" in endpoint.asked[0][1]
        assert "refresh_token=r2" in endpoint.asked[1][1]
        assert "client_secret=secret" in endpoint.asked[0][1]
        assert "Authorization" not in endpoint.asked[0][0]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [('{"error": "invalid_client"}', AuthFailed), ("<html>", BadResponse), ('{"token_type": "x"}', BadResponse)],
)
def test_a_token_endpoint_that_gives_none(answer: str, kind: type[ConnectorError]) -> None:
    async def run() -> None:
        await source(TokenEndpoint(answer), lambda: 0.0).get()

    with pytest.raises(kind):
        asyncio.run(run())


def test_secrets_do_not_travel_in_the_open() -> None:
    with pytest.raises(AuthFailed, match="not https"):
        source(TokenEndpoint(), lambda: 0.0, token_url="http://example.test/token")


def test_a_job_that_is_cancelled_leaves_the_token_to_the_others() -> None:
    async def run() -> None:
        tokens = source(TokenEndpoint(token("first")), lambda: 0.0)
        one, two = asyncio.create_task(tokens.get()), asyncio.create_task(tokens.get())
        await asyncio.sleep(0)
        one.cancel()
        assert await two == "first"
        await tokens.close()

    asyncio.run(run())
