"""WebSocketConnector against servers of the library `websockets`: connections that break, jobs that must not mix."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http
import json
import random
from typing import Any

import msgspec
import pytest
from websocket_services import (
    SOON,
    Cancelling,
    InTurn,
    Peer,
    Plain,
    Referring,
    Resuming,
    context_of,
    opened,
    peer,
    run_job,
    until,
)
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from empd.connectors.base import ConnectorState, Site
from empd.connectors.failures import AuthFailed, ConnectorError, RateLimited, ServiceTimeout, ServiceUnavailable
from empd.connectors.protocol.asking import AskingConnector
from empd.connectors.protocol.circuit_breaker import CircuitOpen, CircuitState
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.dialect import RUNNING, UNKNOWN, Answer, Standing
from empd.connectors.protocol.link import LinkState
from empd.connectors.upstream import UpstreamHandle
from empd.job import Cause


async def send(connection: ServerConnection, **message: Any) -> None:
    await connection.send(json.dumps(message))


async def answers(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Progress, then twice the payload."""
    if message["type"] == "job":
        await send(connection, type="job_submit", id=message["id"])
        await send(connection, type="job_progress", id=message["id"], fraction=0.5)
        await send(connection, type="job_complete", id=message["id"], result=message["payload"] * 2)


async def takes(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Takes jobs and says nothing; confirms a cancel."""
    if message["type"] == "cancel":
        await send(connection, type="job_cancelled", id=message["id"])


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


# --- a connection that breaks ----------------------------------------------------------------------------------------


async def breaks(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Cuts the first connection as soon as it has the job, without a word."""
    if len(server.connections) == 1:
        connection.transport.abort()
    else:
        await answers(server, connection, message)


def test_a_lost_connection_ends_jobs_uncharged_and_the_next_one_has_a_new_connection() -> None:
    async def run() -> None:
        async with peer(breaks) as server, opened(Plain, server.url) as connector:
            with pytest.raises(ServiceUnavailable) as caught:
                await run_job(connector, context_of(1))
            assert (caught.value.cause, caught.value.retry) == (Cause.UPSTREAM, True)
            assert await run_job(connector, context_of(4)) == 8
            assert len(server.connections) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (RUNNING, "late"),
        (Answer(Standing.TERMINAL, MessageType.JOB_COMPLETE, {"result": "kept"}), "kept"),
        (Answer(Standing.TERMINAL, MessageType.JOB_ERROR, {"error": "broke"}), ConnectorError),
        (UNKNOWN, ServiceUnavailable),
        (None, ServiceUnavailable),
    ],
)
def test_after_a_loss_each_job_is_asked_for(answer: Answer | None, result: Any) -> None:
    async def run() -> None:
        async with peer(breaks) as server, opened(Resuming, server.url) as connector:
            context = context_of(1)
            connector.answers = {} if answer is None else {"*": answer}
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: connector.asked)
            key = connector.job_id_of(context)
            assert connector.asked == [key]
            if answer is RUNNING:
                await until(lambda: len(server.connections) == 2 and connector.socket.state is LinkState.OPEN)
                await send(server.connections[1], type="job_complete", id=key, result="late")
            if isinstance(result, str):
                assert await job == result
            else:
                with pytest.raises(result):
                    await job
            assert server.ids("job") == [key]
            assert server.ids("cancel") == []  # the next attempt takes it up

    asyncio.run(run())


def test_after_a_loss_all_jobs_are_asked_for_at_once() -> None:
    class Patient(Resuming):
        async def query_job(self, job_id: str, context: Any) -> Answer:
            self.asked.append(job_id)
            await until(lambda: len(self.asked) == 20)
            return RUNNING

    async def run() -> None:
        async with peer(takes) as server, opened(Patient, server.url) as connector:
            contexts = [context_of(number, job_id=number) for number in range(20)]
            jobs = [asyncio.create_task(run_job(connector, context)) for context in contexts]
            await until(lambda: len(server.got) == 20)
            server.connections[0].transport.abort()
            await until(lambda: len(server.connections) == 2 and len(connector.asked) == 20)
            for context in contexts:
                await send(server.connections[1], type="job_complete", id=connector.job_id_of(context), result="well")
            assert await asyncio.gather(*jobs) == ["well"] * 20

    asyncio.run(run())


class Asking(Plain, AskingConnector):
    """Asks by message; whatever is said of the job is an answer."""


def test_a_question_that_went_down_with_its_connection_does_not_end_a_job_that_the_next_one_found() -> None:
    async def cut(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        if message["type"] == "query" and len(server.connections) == 1:
            connection.transport.abort()
        elif message["type"] == "query":
            await send(connection, type="job_progress", id=message["id"], fraction=0.3)

    async def run() -> None:
        async with peer(cut) as server, opened(Asking, server.url, message_timeout_s=0.05) as connector:
            context = context_of(1)
            key = connector.job_id_of(context)
            job = asyncio.create_task(run_job(connector, context))
            # The question of the silent job is lost, that of the greeting answered; the job then asks once more.
            await until(lambda: len(server.connections) == 2 and len(server.ids("query")) >= 3)
            await send(server.connections[1], type="job_complete", id=key, result="late")
            assert await job == "late"
            assert server.ids("job") == [key]

    asyncio.run(run())


def test_a_question_without_an_answer_fails_no_job_that_was_found_on_another_connection() -> None:
    class Slow(Resuming):
        async def query_job(self, job_id: str, context: Any) -> Answer:
            self.asked.append(job_id)
            if len(self.asked) > 1:
                return RUNNING
            server.connections[0].transport.abort()
            await until(lambda: len(self.asked) > 1)
            raise ServiceUnavailable("asked on a connection that is gone")

    server: Peer

    async def run() -> None:
        nonlocal server
        async with peer(takes) as server, opened(Slow, server.url, message_timeout_s=0.05) as connector:
            context = context_of(1)
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: len(connector.asked) >= 3)
            await send(server.connections[1], type="job_complete", id=connector.job_id_of(context), result="late")
            assert await job == "late"

    asyncio.run(run())


def test_a_service_that_stays_away_ends_its_jobs_when_the_budget_is_spent_and_comes_back_by_health() -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(peer(takes))
            port = server.server.sockets[0].getsockname()[1]
            connector = await stack.enter_async_context(
                opened(Resuming, server.url, reconnect={**SOON, "attempts_max": 3})
            )
            job = asyncio.create_task(run_job(connector, context_of(1)))
            await until(lambda: server.got)
            server.server.close()
            with pytest.raises(ServiceUnavailable):
                await job
            await until(lambda: connector.socket.state is LinkState.DOWN)
            assert not await connector.probe()
            assert connector.state is ConnectorState.ERROR
            await server.server.wait_closed()
            async with peer(answers, port) as back:
                assert await connector.probe()
                assert await run_job(connector, context_of(4, job_id=2)) == 8
                assert len(back.connections) == 1

    asyncio.run(run())


def test_a_connection_closed_in_good_order_is_not_tried_again() -> None:
    async def closes(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        await connection.close(1000, "done for today")

    async def run() -> None:
        async with peer(closes) as server, opened(Plain, server.url) as connector:
            with pytest.raises(ServiceUnavailable, match="closed the connection"):
                await run_job(connector, context_of(1))
            assert connector.socket.state is LinkState.DOWN
            assert len(server.connections) == 1

    asyncio.run(run())


def test_a_peer_without_a_sign_of_life_is_left() -> None:
    """It shakes hands and then neither reads nor answers, as a machine does that lost its network."""
    hands: list[asyncio.StreamWriter] = []

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
        (request,) = protocol.events_received()
        protocol.send_response(protocol.accept(request))
        for data in protocol.data_to_send():
            writer.write(data)
        hands.append(writer)

    async def run() -> None:
        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with opened(Plain, url, heartbeat_interval_s=0.05, pong_timeout_s=0.1) as connector:
            with pytest.raises(ServiceUnavailable):
                await run_job(connector, context_of(1))
            assert len(hands) >= 2
        for writer in hands:
            writer.close()
        server.close()

    asyncio.run(run())


def test_a_peer_that_answers_pings_is_kept_and_its_own_pings_are_answered() -> None:
    async def run() -> None:
        async with (
            peer(takes, ping_interval=0.02, ping_timeout=5) as server,
            opened(Plain, server.url, heartbeat_interval_s=0.03, pong_timeout_s=10) as connector,
        ):
            job = asyncio.create_task(run_job(connector, context_of(1)))
            await until(lambda: server.got)
            await until(lambda: server.connections[0].latency > 0)
            await asyncio.sleep(0.2)
            await send(server.connections[0], type="job_complete", id=server.got[0]["id"], result="kept")
            assert await job == "kept"
            assert len(server.connections) == 1

    asyncio.run(run())


def test_a_service_may_have_a_heartbeat_of_its_own() -> None:
    class Beating(Plain):
        def build_heartbeat_message(self) -> Any:
            return {"type": "heartbeat"}

    async def run() -> None:
        async with peer(takes) as server, opened(Beating, server.url, heartbeat_interval_s=0.02):
            await until(lambda: {"type": "heartbeat"} in server.got)

    asyncio.run(run())


def test_one_bad_message_does_not_end_a_connection_that_all_jobs_share() -> None:
    async def babbles(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        for frame in (
            "{",
            "[]",
            '{"type": "sing"}',
            '{"type": "job_complete"}',
            b"\x00\x01",
            '{"type":"job_progress"}',
        ):
            await connection.send(frame)
        await answers(server, connection, message)

    async def run() -> None:
        async with peer(babbles) as server, opened(Plain, server.url) as connector:
            assert await run_job(connector, context_of(1)) == 2
            assert len(server.connections) == 1

    asyncio.run(run())


def test_a_message_above_the_limit_ends_the_connection_and_not_the_memory() -> None:
    async def floods(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        await send(connection, type="job_complete", id=message["id"], result="x" * 100_000)

    async def run() -> None:
        async with peer(floods) as server, opened(Plain, server.url, message_bytes_max=50_000) as connector:
            with pytest.raises(ServiceUnavailable):
                await run_job(connector, context_of(1))
        async with peer(floods) as server, opened(Plain, server.url, message_bytes_max=200_000) as connector:
            assert len(await run_job(connector, context_of(1))) == 100_000

    asyncio.run(run())


# --- ids -------------------------------------------------------------------------------------------------------------


def test_a_service_that_names_jobs_itself_may_answer_before_it_has_named_them() -> None:
    async def hasty(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        own = f"s{len(server.got)}"
        await send(connection, type="job_complete", id=own, result=message["payload"])
        await send(connection, type="job_submit", id=own, reference=message["id"])

    async def run() -> None:
        async with peer(hasty) as server, opened(Referring, server.url) as connector:
            contexts = [context_of(number, job_id=number) for number in range(20)]
            assert await asyncio.gather(*(run_job(connector, context) for context in contexts)) == list(range(20))
            handle = UpstreamHandle.decode(contexts[0].last_checkpoint)
            assert handle is not None
            assert handle.id == "s1"
            assert connector.correlation.early == []

    asyncio.run(run())


def test_where_a_service_names_no_reference_one_job_at_a_time_is_handed_over() -> None:
    taken: list[int] = []

    async def in_turn(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        taken.append(message["payload"])
        await asyncio.sleep(0.001)
        await send(connection, type="job_submit", id=f"s{message['payload']}")
        if len(taken) == 10:
            for number in reversed(taken):
                await send(connection, type="job_complete", id=f"s{number}", result=number)

    async def run() -> None:
        async with peer(in_turn) as server, opened(InTurn, server.url) as connector:
            jobs = [run_job(connector, context_of(number, job_id=number)) for number in range(10)]
            assert await asyncio.gather(*jobs) == list(range(10))

    asyncio.run(run())


def test_a_missing_acknowledgement_never_names_the_next_job() -> None:
    async def forgets(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        if len(server.got) == 1:
            return
        await send(connection, type="job_submit", id=f"s{message['payload']}")
        await send(connection, type="job_complete", id=f"s{message['payload']}", result=message["payload"])

    async def run() -> None:
        async with peer(forgets) as server, opened(InTurn, server.url, message_timeout_s=0.2) as connector:
            first = asyncio.create_task(run_job(connector, context_of(1)))
            await until(lambda: server.got)
            with pytest.raises(ServiceTimeout):
                await first
            connector.config.message_timeout_s = 20
            assert await run_job(connector, context_of(2, job_id=2)) == 2
            await until(lambda: len(server.connections) == 2)

    asyncio.run(run())


def test_a_cancel_before_the_acknowledgement_hits_no_neighbour_and_ends_the_job_under_its_name() -> None:
    class InTurnCancelling(InTurn, Cancelling):
        confirms_cancel = False

    async def names_the_first(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        if message["type"] == "job" and message["payload"] != 2:
            await send(connection, type="job_submit", id=f"s{message['payload']}")

    async def run() -> None:
        async with peer(names_the_first) as server, opened(InTurnCancelling, server.url) as connector:
            contexts = [context_of(number, job_id=number) for number in (1, 2, 3)]
            jobs = [asyncio.create_task(run_job(connector, context)) for context in contexts]
            await until(lambda: len(server.got) == 2)
            await cancelled(connector, contexts[1], jobs[1])
            await send(server.connections[0], type="job_submit", id="s2")
            await until(lambda: server.ids("cancel") == ["s2"])
            await until(lambda: len(server.ids("job")) == 3)
            for number in (1, 3):
                await send(server.connections[0], type="job_complete", id=f"s{number}", result=number)
            assert (await jobs[0], await jobs[2]) == (1, 3)
            assert (len(server.connections), len(connector.correlation)) == (1, 0)

    asyncio.run(run())


# --- cancel, limits, resume ------------------------------------------------------------------------------------------


async def cancelled(connector: Any, context: Any, job: asyncio.Task[Any]) -> None:
    """As a worker does it."""
    context.mark_stopping("cancelled")
    await connector.cancel(context.job, context)
    with pytest.raises(ConnectorError):
        await job


def test_a_cancel_reaches_the_service_and_hits_no_neighbour() -> None:
    async def run() -> None:
        async with peer(takes) as server, opened(Cancelling, server.url) as connector:
            contexts = [context_of(number, job_id=number) for number in (1, 2)]
            jobs = [asyncio.create_task(run_job(connector, context)) for context in contexts]
            await until(lambda: len(server.got) == 2)
            await cancelled(connector, contexts[0], jobs[0])
            assert server.ids("cancel") == [connector.job_id_of(contexts[0])]
            await connector.cancel(contexts[0].job, contexts[0])  # once more: nothing
            await send(server.connections[0], type="job_complete", id=connector.job_id_of(contexts[1]), result="well")
            assert await jobs[1] == "well"
            assert len(server.ids("cancel")) == 1

    asyncio.run(run())


def test_a_job_that_is_not_handed_over_yet_is_cancelled_here() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def stalls(connection: ServerConnection, request: Request) -> None:
            await release.wait()

        async with peer(takes, process_request=stalls) as server:
            connector = Cancelling(Cancelling.Config(url=server.url), Site())
            context = context_of(1)
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: connector.runs)
            await cancelled(connector, context, job)
            await connector.close()
            release.set()
            assert server.got == []

    asyncio.run(run())


def test_a_cancel_that_the_service_does_not_confirm_ends_the_job_here() -> None:
    class Curt(Cancelling):
        confirms_cancel = False

    async def run() -> None:
        async with peer(takes) as server, opened(Curt, server.url) as connector:
            context = context_of(1)
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: server.got)
            await cancelled(connector, context, job)
            await until(lambda: server.ids("cancel"))

    asyncio.run(run())


def test_what_is_left_at_a_service_when_its_connection_breaks_is_cancelled_on_the_next() -> None:
    async def run() -> None:
        async with peer(breaks) as server, opened(Cancelling, server.url) as connector:
            context = context_of(1)
            with pytest.raises(ServiceUnavailable):
                await run_job(connector, context)
            await until(lambda: server.ids("cancel") == [connector.job_id_of(context)])

    asyncio.run(run())


def test_a_cancel_while_there_is_no_connection_reaches_the_service_on_the_next() -> None:
    away = {**SOON, "base_s": 0.5, "cap_s": 0.5}

    async def run() -> None:
        async with peer(takes) as server, opened(Cancelling, server.url, reconnect=away) as connector:
            context = context_of(1)
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: server.got)
            server.connections[0].transport.abort()
            await until(lambda: connector.socket.state is LinkState.WAITING)
            await cancelled(connector, context, job)
            await until(lambda: server.ids("cancel") == [connector.job_id_of(context)])
            assert len(server.connections) == 2

    asyncio.run(run())


def test_a_connector_that_is_stopped_during_its_first_probe_leaves_no_connection() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def stalls(connection: ServerConnection, request: Request) -> None:
            await release.wait()

        async with peer(takes, process_request=stalls) as server:
            connector = Plain(Plain.Config(url=server.url), Site())
            before = asyncio.all_tasks()
            starting = asyncio.create_task(connector.start())
            await until(lambda: connector.socket.state is LinkState.CONNECTING)
            starting.cancel()
            await asyncio.wait((starting,))
            await connector.stop()
            release.set()
            assert connector.state is ConnectorState.OFFLINE
            assert not [task for task in asyncio.all_tasks() - before if "_keep" in repr(task)]

    asyncio.run(run())


def test_a_whole_job_has_a_limit_beside_the_silence_in_it() -> None:
    async def busy(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        if message["type"] == "job":
            for _ in range(1000):
                await send(connection, type="job_progress", id=message["id"], fraction=0.1)
                await asyncio.sleep(0.01)

    async def run() -> None:
        async with (
            peer(busy) as server,
            opened(Cancelling, server.url, job_timeout_s=0.3, message_timeout_s=20) as connector,
        ):
            with pytest.raises(ServiceTimeout, match="not done within"):
                await run_job(connector, context_of(1))
        async with (
            peer(takes) as server,
            opened(Cancelling, server.url, job_timeout_s=20, message_timeout_s=0.1) as connector,
        ):
            with pytest.raises(ServiceTimeout, match="no message for"):
                await run_job(connector, context_of(1))
            await until(lambda: len(server.ids("cancel")) == 1)

    asyncio.run(run())


def test_a_silent_job_is_asked_for_and_goes_on_while_it_runs() -> None:
    async def run() -> None:
        async with peer(takes) as server, opened(Resuming, server.url, message_timeout_s=0.05) as connector:
            connector.answers["*"] = RUNNING
            job = asyncio.create_task(run_job(connector, context_of(1)))
            await until(lambda: len(connector.asked) >= 3)
            assert not job.done()
            connector.answers["*"] = Answer(Standing.TERMINAL, MessageType.JOB_COMPLETE, {"result": "missed"})
            assert await job == "missed"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "handed_over"),
    [
        (Answer(Standing.TERMINAL, MessageType.JOB_COMPLETE, {"result": 2}), 0),
        (RUNNING, 0),
        (UNKNOWN, 1),
        (Answer(Standing.TERMINAL, MessageType.JOB_CANCELLED), 1),
    ],
)
def test_the_next_attempt_takes_up_what_the_last_one_handed_over(answer: Answer, handed_over: int) -> None:
    async def run() -> None:
        async with peer(answers) as server, opened(Resuming, server.url) as connector:
            connector.answers["old"] = answer
            handle = UpstreamHandle("plain", "old", 8)
            context = context_of(1, checkpoint=handle.encode())
            job = asyncio.create_task(run_job(connector, context))
            if answer is RUNNING:
                await until(lambda: connector.asked)
                await send(server.connections[0], type="job_complete", id="old", result=2)
            assert await job == 2
            assert connector.asked[0] == "old"
            assert len(server.ids("job")) == handed_over

    asyncio.run(run())


def test_a_drained_job_is_left_running_for_its_next_attempt() -> None:
    async def run() -> None:
        async with peer(takes) as server, opened(Resuming, server.url) as connector:
            context = context_of(1)
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: server.got)
            context.mark_stopping("drain")
            await connector.cancel(context.job, context)
            with pytest.raises(ServiceUnavailable):
                await job
            handle = UpstreamHandle.decode(context.last_checkpoint)
            assert handle is not None
            assert (handle.id, handle.ended) == (connector.job_id_of(context), False)
            await connector.send({"type": "mark"})
            await until(lambda: server.got[-1]["type"] == "mark")
            assert server.ids("cancel") == []

    asyncio.run(run())


def test_a_login_by_message_comes_before_the_first_job_and_again_after_a_loss() -> None:
    class Greeting(Resuming):
        welcomed: asyncio.Event

        async def on_connection_established(self, again: bool) -> None:
            self.welcomed = asyncio.Event()
            await self.send({"type": "login", "id": "x"})
            await self.welcomed.wait()

        def on_connection_message(self, message: Any) -> None:
            self.welcomed.set()

    async def greets(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
        if message["type"] == "login":
            await send(connection, type="connection")
        else:
            await breaks(server, connection, message)

    async def run() -> None:
        async with peer(greets) as server, opened(Greeting, server.url) as connector:
            with pytest.raises(ServiceUnavailable):
                await run_job(connector, context_of(1))
            assert await run_job(connector, context_of(2, job_id=2)) == 4
            assert [message["type"] for message in server.got] == ["login", "job", "login", "job"]

    asyncio.run(run())
