"""WebSocketConnector's jobs on a connection that they share: their ids, cancel, time-outs, the next attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websocket_services import (
    SOON,
    Cancelling,
    InTurn,
    Peer,
    Plain,
    Referring,
    Resuming,
    answers,
    breaks,
    cancelled,
    context_of,
    opened,
    peer,
    run_job,
    send,
    takes,
    until,
)
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

from empd.connectors.base import ConnectorState, Site
from empd.connectors.failures import ServiceTimeout, ServiceUnavailable
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.dialect import RUNNING, UNKNOWN, Answer, Standing
from empd.connectors.protocol.link import LinkState
from empd.connectors.upstream import UpstreamHandle

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
