"""WebSocketConnector against servers of the library `websockets`: jobs there and back, handshakes, limits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http
import random
from typing import Any

import msgspec
import pytest
from websocket_services import SOON, Peer, Plain, answers, context_of, opened, peer, run_job, send, until
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from empd.connectors.base import ConnectorState, Site
from empd.connectors.failures import AuthFailed, ConnectorError, RateLimited, ServiceUnavailable
from empd.connectors.protocol.circuit_breaker import CircuitOpen, CircuitState
from empd.job import Cause


def test_a_job_goes_there_and_back_with_progress() -> None:
    async def run() -> None:
        async with peer(answers) as server, opened(Plain, server.url) as connector:
            context = context_of(21)
            assert await run_job(connector, context) == 42
            assert ("progress", 0.5, "", 0, 0) in context.port.said
            assert len(server.connections) == 1

    asyncio.run(run())


def test_two_hundred_jobs_on_one_connection_each_get_their_own_answer() -> None:
    async def shuffled(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        if len(server.got) == 200:
            waiting = list(server.got)
            random.Random(7).shuffle(waiting)
            for taken in waiting:
                await send(connection, type="job_progress", id=taken["id"], fraction=0.5)
                await send(connection, type="job_complete", id=taken["id"], result=[taken["payload"], taken["id"]])
                await send(connection, type="job_complete", id=taken["id"], result="again")

    async def run() -> None:
        async with peer(shuffled) as server, opened(Plain, server.url) as connector:
            contexts = [context_of(number, job_id=number) for number in range(1, 201)]
            found = await asyncio.gather(*(run_job(connector, context) for context in contexts))
            assert [value for value, _ in found] == list(range(1, 201))
            assert [key for _, key in found] == [connector.job_id_of(context) for context in contexts]
            assert len(connector.correlation) == 0
            assert connector.correlation.early_bytes == 0
            assert len(server.connections) == 1

    asyncio.run(run())


class Ailing(Plain):
    """Its service says so when it is not well."""

    def extract_error(self, message: Any) -> ConnectorError:
        return ServiceUnavailable("not well") if message["error"] == "ill" else ConnectorError("bad", retry=False)


async def fails_as_told(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    if message["payload"] == "well":
        await send(connection, type="job_complete", id=message["id"], result=1)
    else:
        await send(connection, type="job_error", id=message["id"], error=message["payload"])


def test_a_circuit_counts_jobs_that_failed_by_the_services_fault_and_closes_again() -> None:
    async def run() -> None:
        circuit = {"failures_max": 2, "open_s": 0.2}
        async with peer(fails_as_told) as server, opened(Ailing, server.url, circuit=circuit) as connector:

            async def outcome(payload: str) -> type:
                with contextlib.suppress(ConnectorError):
                    return type(await run_job(connector, context_of(payload, job_id=next(numbers))))
                return ConnectorError

            numbers = iter(range(1, 1000))
            for payload in ("mine", "mine", "mine", "ill", "ill"):
                await outcome(payload)
            assert len(server.got) == 5
            assert connector.calls.circuits["jobs"].state is CircuitState.OPEN
            with pytest.raises(CircuitOpen) as caught:
                await run_job(connector, context_of("well", job_id=500))
            assert caught.value.retry_after_s > 0
            assert len(server.got) == 5  # nothing was handed over
            async with asyncio.timeout(60):
                while await outcome("well") is ConnectorError:
                    await asyncio.sleep(0.02)
            assert connector.calls.circuits["jobs"].state is CircuitState.CLOSED

    asyncio.run(run())


def test_no_more_jobs_are_handed_over_than_the_rate_limit_lets_through() -> None:
    async def run() -> None:
        limit = {"per_s": 0.001, "burst": 2}
        async with peer(answers) as server, opened(Plain, server.url, rate_limit=limit) as connector:
            for number in (1, 2):
                assert await run_job(connector, context_of(number, job_id=number)) == 2 * number
            with pytest.raises(RateLimited) as caught:
                await run_job(connector, context_of(3, job_id=3))
            assert caught.value.retry_after_s > 60
            assert len(server.ids("job")) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"type": "basic", "username": "u", "password": "secret"}, "Basic " + base64.b64encode(b"u:secret").decode()),
        ({"type": "bearer", "token": "secret"}, "Bearer secret"),
        ({"type": "api_key", "api_key": "secret"}, "secret"),
        ({"type": "api_key", "api_key": "secret", "query": "token"}, "?token=secret"),
    ],
)
def test_it_shows_who_it_is(auth: dict[str, Any], expected: str) -> None:
    seen: list[Request] = []

    def gate(connection: ServerConnection, request: Request) -> Response | None:
        seen.append(request)
        shown = {*request.headers.raw_items(), ("query", request.path.removeprefix("/jobs"))}
        wanted = any(value == expected for _, value in shown)
        return None if wanted else connection.respond(http.HTTPStatus.UNAUTHORIZED, "who are you?")

    async def run() -> None:
        async with peer(answers, process_request=gate) as server:
            async with opened(Plain, server.url, auth=auth, headers={"X-Own": "yes"}) as connector:
                assert await run_job(connector, context_of(1)) == 2
            assert seen[0].headers["X-Own"] == "yes"
            async with opened(Plain, server.url, healthy=False) as connector:
                assert connector.state is ConnectorState.WAITING_FOR_SERVICE
                with pytest.raises(AuthFailed):
                    await run_job(connector, context_of(1))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retry_after_s"),
    [
        (404, [], ServiceUnavailable, None),
        (503, [("Retry-After", "7")], ServiceUnavailable, 7.0),
        (429, [("Retry-After", "3")], RateLimited, 3.0),
        (403, [], AuthFailed, None),
    ],
)
def test_a_refused_handshake_says_what_follows(
    status: int, headers: list[tuple[str, str]], kind: type[ConnectorError], retry_after_s: float | None
) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(http.HTTPStatus(status), "no")
        response.headers.update(headers)
        return response

    async def run() -> None:
        async with (
            peer(answers, process_request=refuse) as server,
            opened(Plain, server.url, healthy=False) as connector,
        ):
            with pytest.raises(kind) as caught:
                await run_job(connector, context_of(1))
            assert caught.value.retry_after_s == retry_after_s
            assert type(caught.value) is kind

    asyncio.run(run())


def test_without_a_server_a_job_is_put_back_uncharged() -> None:
    async def run() -> None:
        async with opened(Plain, "ws://127.0.0.1:1/", healthy=False) as connector:
            with pytest.raises(ServiceUnavailable) as caught:
                await run_job(connector, context_of(1))
            assert (caught.value.cause, caught.value.retry) == (Cause.UPSTREAM, True)

    asyncio.run(run())


class EndsBadly(Plain):
    """Its greeting fails when it is broken off."""

    greets = False

    async def on_connection_established(self, again: bool) -> None:
        self.greets = True
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ServiceUnavailable("broken off") from None


def test_a_close_that_meets_the_end_of_the_connection_ends_it_for_good() -> None:
    async def run() -> None:
        async with peer(answers) as server:
            config = msgspec.convert({"url": server.url, "reconnect": SOON}, EndsBadly.Config)
            connector = EndsBadly(config, Site(service="s"))
            await connector.open()
            asked = asyncio.create_task(connector.check_health())
            await until(lambda: connector.greets)
            async with asyncio.timeout(30):
                await connector.close()
            with pytest.raises(ServiceUnavailable):
                await asked
            assert len(server.connections) == 1

    asyncio.run(run())
