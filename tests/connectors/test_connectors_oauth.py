"""OAuth2 beyond HTTP: WebSocket handshakes and gRPC calls with the tokens of an endpoint, refused and renewed."""

from __future__ import annotations

import asyncio
import contextlib
import http
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import msgspec
import pytest
from aiohttp import web
from test_connectors_grpc import INPUT, QUICK
from websocket_services import Peer, Plain, Resuming, context_of, opened, peer, run_job, until
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.failures import AuthFailed, ConnectorError, ServiceUnavailable
from empd.connectors.protocol.auth import bearer
from empd.connectors.protocol.dialect import RUNNING
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.service.comfyui.listener import Listener
from empd.connectors.service.comfyui.local import ComfyUILocalConnector
from empd.connectors.service.kserve import KServeConnector
from empd.errors import FailureClass
from empd.job import Cause
from tests.doubles.triton import Triton

LONG = "token-of-more-than-four-letters"


class Tokens:
    """A token endpoint. The newest token is good, and those before are not, unless `revoked` says that none is."""

    def __init__(self, lifetime_s: int = 3600) -> None:
        self.lifetime_s = lifetime_s
        self.forms: list[dict[str, Any]] = []
        self.revoked = False
        self.status = 200
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.forms.append(dict(await request.post()))
        if self.status != 200:
            return web.Response(status=self.status)
        return web.json_response(
            {
                "access_token": self.newest,
                "token_type": "Bearer",
                "expires_in": self.lifetime_s,
                "refresh_token": f"refresh-{len(self.forms)}",
            }
        )

    @property
    def newest(self) -> str:
        return f"{LONG}-{len(self.forms)}"

    def is_good(self, token: str) -> bool:
        return bool(self.forms) and token == self.newest and not self.revoked

    def auth(self, **more: Any) -> dict[str, Any]:
        return {"type": "oauth2", "token_url": self.url, "client_id": "me", "client_secret": "hush-hush", **more}


@contextlib.asynccontextmanager
async def tokens(lifetime_s: int = 3600, routes: Iterable[web.RouteDef] = ()) -> AsyncIterator[Tokens]:
    """A running endpoint."""
    made = Tokens(lifetime_s)
    app = web.Application()
    app.add_routes([web.post("/token", made.answer), *routes])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    try:
        yield made
    finally:
        await runner.cleanup()


class Gate:
    """Lets handshakes through that show a good token, in the header or in the query."""

    def __init__(self, endpoint: Tokens, place: str = "") -> None:
        self.endpoint = endpoint
        self.place = place
        self.shown: list[str] = []

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.place:
            assert "Authorization" not in request.headers
            token = parse_qs(urlsplit(request.path).query)[self.place][0]
        else:
            token = request.headers["Authorization"].removeprefix("Bearer ")
        self.shown.append(token)
        return None if self.endpoint.is_good(token) else connection.respond(http.HTTPStatus.UNAUTHORIZED, "who?")


async def answers(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    if message["type"] == "job":
        await connection.send(f'{{"type": "job_complete", "id": "{message["id"]}", "result": 42}}')


async def takes(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Says nothing."""


def test_http_shows_a_token_in_the_query_where_it_is_told_to() -> None:
    async def thing(request: web.Request) -> web.Response:
        assert "Authorization" not in request.headers
        shown.append(request.query["access_token"])
        return web.json_response({"n": 1}, status=200 if endpoint.is_good(shown[-1]) else 401)

    async def run() -> None:
        nonlocal endpoint
        async with tokens(routes=[web.get("/thing", thing)]) as endpoint:
            base = endpoint.url.removesuffix("/token")
            config = msgspec.convert({"base_url": base, "auth": endpoint.auth(query="access_token")}, HTTPConfig)
            connector = HTTPConnector(config, Site(service="s", learn=learnt.extend))
            await connector.open()
            try:
                for _ in range(2):
                    assert (await connector.request("GET", "/thing")).json() == {"n": 1}
                    endpoint.forms.append({})
            finally:
                await connector.close()

    endpoint: Any = None
    shown: list[str] = []
    learnt: list[str] = []
    asyncio.run(run())
    assert shown == [f"{LONG}-1", f"{LONG}-1", f"{LONG}-3"]
    assert {f"{LONG}-1", f"{LONG}-3"} <= set(learnt)


# --- WebSocket -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "access_token"])
def test_a_handshake_shows_the_token_in_the_header_or_in_the_query(place: str) -> None:
    async def run() -> None:
        async with tokens() as endpoint, peer(answers, process_request=Gate(endpoint, place)) as server:
            async with opened(Plain, server.url, auth=endpoint.auth(query=place)) as connector:
                assert await run_job(connector, context_of(1)) == 42
            assert [form["grant_type"] for form in endpoint.forms] == ["client_credentials"]

    asyncio.run(run())


def test_a_token_that_a_handshake_does_not_take_is_renewed_once_and_shown_again() -> None:
    async def run() -> None:
        async with tokens() as endpoint:
            gate = Gate(endpoint)
            async with peer(answers, process_request=gate) as server:
                auth = endpoint.auth(refresh_token="refresh-0")
                async with opened(Plain, server.url, auth=auth) as connector:
                    await server.connections[0].close()
                    await until(lambda: not connector.socket.usable)
                    endpoint.forms.append({})  # somebody else has fetched one: the connector's is no longer good
                    assert await run_job(connector, context_of(1)) == 42
                assert gate.shown == [f"{LONG}-1", f"{LONG}-1", f"{LONG}-3"]
                assert [form.get("refresh_token") for form in endpoint.forms] == ["refresh-0", None, "refresh-1"]

    asyncio.run(run())


def test_a_worker_is_told_of_the_token_that_it_has_to_hide() -> None:
    async def run() -> None:
        learnt: list[str] = []
        async with tokens() as endpoint, peer(answers, process_request=Gate(endpoint)) as server:
            config = msgspec.convert({"url": server.url, "auth": endpoint.auth()}, Plain.Config)
            connector = Plain(config, Site(service="s", learn=learnt.extend))
            assert await connector.start()
            await connector.stop()
            assert set(learnt) == {f"{LONG}-1", "refresh-1"}
            assert connector.redact(f"{LONG}-1 refresh-1 hush-hush") == "*** *** ***"

    asyncio.run(run())


@pytest.mark.parametrize("lifetime_s", [3600, 1], ids=["refused", "old"])
def test_a_job_on_a_connection_that_breaks_goes_on_with_a_renewed_token(lifetime_s: int) -> None:
    async def run() -> None:
        async with tokens(lifetime_s) as endpoint:
            gate = Gate(endpoint)
            async with (
                peer(takes, process_request=gate) as server,
                opened(Resuming, server.url, auth=endpoint.auth()) as connector,
            ):
                connector.answers = {"*": RUNNING}
                context = context_of(1)
                job = asyncio.create_task(run_job(connector, context))
                await until(lambda: server.ids("job"))
                if lifetime_s > 1:
                    endpoint.forms.append({})  # the token is good no more
                while gate.shown[-1] == f"{LONG}-1":
                    asked = len(connector.asked)
                    server.connections[-1].transport.abort()
                    await until(lambda: len(connector.asked) > asked)  # noqa: B023
                key = connector.job_id_of(context)
                await server.connections[-1].send(f'{{"type": "job_complete", "id": "{key}", "result": "late"}}')
                assert await job == "late"
                assert server.ids("job") == [key]
                # One that is old is replaced before it is refused.
                assert len(gate.shown) - len(server.connections) == (1 if lifetime_s > 1 else 0)

    asyncio.run(run())


def test_a_service_that_takes_no_token_is_asked_twice_and_no_more() -> None:
    async def run() -> None:
        async with tokens() as endpoint:
            endpoint.revoked = True
            gate = Gate(endpoint)
            async with (
                peer(answers, process_request=gate) as server,
                opened(Plain, server.url, healthy=False, auth=endpoint.auth()) as connector,
            ):
                assert len(gate.shown) == 2
                with pytest.raises(AuthFailed):
                    await run_job(connector, context_of(1))
                assert gate.shown == [f"{LONG}-1", f"{LONG}-2", f"{LONG}-2", f"{LONG}-3"]

    asyncio.run(run())


def test_a_fixed_token_that_is_refused_is_not_shown_again() -> None:
    async def run() -> None:
        async with tokens() as endpoint:
            gate = Gate(endpoint)
            auth = {"type": "bearer", "token": "fixed"}
            async with peer(answers, process_request=gate) as server:
                async with opened(Plain, server.url, healthy=False, auth=auth):
                    pass
                assert gate.shown == ["fixed"]

    asyncio.run(run())


def test_without_the_token_endpoint_nobody_knocks_and_the_job_waits_uncharged() -> None:
    async def run() -> None:
        async with tokens() as endpoint:
            endpoint.status = 503
            gate = Gate(endpoint)
            async with (
                peer(answers, process_request=gate) as server,
                opened(Plain, server.url, healthy=False, auth=endpoint.auth()) as connector,
            ):
                with pytest.raises(ServiceUnavailable, match="token endpoint answered 503") as caught:
                    await run_job(connector, context_of(1))
                assert (caught.value.retry, caught.value.cause) == (True, Cause.UPSTREAM)
                assert not gate.shown
                endpoint.status = 200
                assert await run_job(connector, context_of(1)) == 42

    asyncio.run(run())


def test_comfyuis_listener_shows_the_token_too() -> None:
    async def run() -> None:
        async with tokens() as endpoint:
            gate = Gate(endpoint)
            async with peer(takes, process_request=gate) as server:
                base = server.url.replace("ws://", "http://").removesuffix("/jobs")
                config = msgspec.convert({"base_url": base, "auth": endpoint.auth()}, ComfyUILocalConnector.Config)
                connector = ComfyUILocalConnector(config, Site(service="s"))
                await connector.open()
                listener = Listener(connector, base, "p1", lambda heard: None)
                listening = asyncio.create_task(listener._listen())
                await until(lambda: listener.connections)
                listening.cancel()
                await asyncio.wait([listening])
                await connector.close()
                assert gate.shown == [f"{LONG}-1"]

    asyncio.run(run())


# --- gRPC ------------------------------------------------------------------------------------------------------------


class Guarded(Triton):
    """Takes calls that show a good token; `ends_in_stream`: so many streams are refused after their first answer."""

    def __init__(self, endpoint: Tokens) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.ends_in_stream = 0

    @property
    def shown(self) -> list[str]:
        return [metadata.get("authorization", "") for metadata in self.metadata]

    async def _enter(self, name: str, context: Any) -> None:
        await super()._enter(name, context)
        if not self.endpoint.is_good(self.shown[-1].removeprefix("Bearer ")):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"not good: {self.metadata[-1]}")

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for answer in super().ModelStreamInfer(requests, context):
            yield answer
            if self.ends_in_stream:
                self.ends_in_stream -= 1
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no longer")


@contextlib.asynccontextmanager
async def guarded(healthy: bool = True) -> AsyncIterator[tuple[Tokens, Guarded, KServeConnector, list[str]]]:
    """Token endpoint, server, connector, and what the connector told its worker to hide."""
    learnt: list[str] = []
    async with tokens() as endpoint:
        endpoint.revoked = not healthy
        server = Guarded(endpoint)
        await server.start()
        settings = {"model": "double", "target": server.target, "retry": {**QUICK, "attempts_max": 4}}
        config = msgspec.convert({**settings, "auth": endpoint.auth()}, KServeConnector.Config)
        connector = KServeConnector(config, Site(service="s", learn=learnt.extend))
        assert await connector.start() is healthy, connector.reason
        try:
            yield endpoint, server, connector, learnt
        finally:
            await connector.stop()
            await server.stop()


async def infer(connector: KServeConnector, **payload: Any) -> Any:
    context = context_of({"inputs": [INPUT], **payload})
    return await connector.process(context.job, context)


def test_calls_carry_the_token_and_one_that_is_refused_is_renewed_once() -> None:
    async def run() -> None:
        async with guarded() as (endpoint, server, connector, learnt):
            assert set(server.shown) == {bearer(f"{LONG}-1")["Authorization"]}
            before = len(server.shown)
            for number, payload in enumerate(({}, {"stream": True, "parameters": {"answers": 3}}), start=1):
                endpoint.forms.append({})
                assert await infer(connector, **payload)
                assert len(server.shown) == before + 2 * number
            assert server.shown[-2:] == [f"Bearer {LONG}-3", f"Bearer {LONG}-5"]
            assert {f"{LONG}-1", f"{LONG}-3", f"{LONG}-5"} <= set(learnt)

    asyncio.run(run())


def test_a_call_whose_token_is_never_taken_is_made_twice_and_the_token_is_not_told() -> None:
    async def run() -> None:
        async with guarded() as (endpoint, server, connector, _):
            endpoint.revoked = True
            before = len(server.shown)
            for number, payload in enumerate(({}, {"stream": True}), start=1):
                with pytest.raises(AuthFailed) as caught:
                    await infer(connector, **payload)
                assert len(server.shown) == before + 2 * number
                assert "not good" in caught.value.message
                assert LONG not in caught.value.message

    asyncio.run(run())


def test_a_stream_that_is_refused_after_its_first_answer_is_left_to_another_attempt() -> None:
    async def run() -> None:
        async with guarded() as (endpoint, server, connector, _):
            server.ends_in_stream = 1
            with pytest.raises(ConnectorError) as caught:
                await infer(connector, stream=True, parameters={"answers": 3})
            assert (caught.value.failure, caught.value.retry) == (FailureClass.AUTH, True)
            assert server.calls["ModelStreamInfer"] == 1
            assert len(endpoint.forms) == 2  # which finds another token
            assert len((await infer(connector, stream=True, parameters={"answers": 3}))["answers"]) == 3

    asyncio.run(run())


def test_a_server_that_takes_no_token_gets_no_jobs() -> None:
    async def run() -> None:
        async with guarded(healthy=False) as (_, _server, connector, _learnt):
            assert "UNAUTHENTICATED" in connector.reason

    asyncio.run(run())


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "api_key", "api_key": "k", "query": "key"},
        {"type": "oauth2", "token_url": "https://x.test/t", "client_id": "me", "query": "token"},
    ],
)
def test_a_query_is_nothing_that_a_grpc_call_has(auth: dict[str, Any]) -> None:
    with pytest.raises(registry.ConnectorUnavailable, match="no query"):
        registry.build(KServeConnector, {"target": "127.0.0.1:1", "auth": auth}, Site(service="s"))


@pytest.mark.parametrize("kind", [KServeConnector, Plain])
def test_a_secret_that_would_travel_in_the_open_is_refused_when_the_connector_is_built(kind: Any) -> None:
    auth = {"type": "oauth2", "token_url": "http://example.test/token", "client_id": "me", "client_secret": "hush"}
    with pytest.raises(registry.ConnectorUnavailable, match="not https"):
        registry.build(kind, {"auth": auth}, Site(service="s"))
