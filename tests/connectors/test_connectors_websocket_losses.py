"""WebSocketConnector on connections that break, fall silent, or bring what they should not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from websocket_services import (
    SOON,
    Peer,
    Plain,
    Resuming,
    answers,
    breaks,
    context_of,
    opened,
    peer,
    run_job,
    send,
    takes,
    until,
)
from websockets.asyncio.server import ServerConnection
from websockets.server import ServerProtocol

from empd.connectors.base import ConnectorState
from empd.connectors.failures import ConnectorError, ServiceUnavailable
from empd.connectors.protocol.asking import AskingConnector
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.dialect import RUNNING, UNKNOWN, Answer, Standing
from empd.connectors.protocol.link import LinkState
from empd.job import Cause


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
