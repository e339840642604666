"""The custom and the simulation's WebSocket connector: with the simulation and its faults, and with a stranger."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from test_connectors_readme import connector_of
from websocket_services import SOON, Peer, context_of, peer, run_job, until
from websockets.asyncio.server import ServerConnection

from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.failures import ConnectorError, InvalidInput, ServiceUnavailable
from empd.connectors.protocol.link import LinkState
from empd.connectors.service.custom_websocket import CustomWebSocketConnector
from empd.connectors.service.simulation_websocket import SimulationWebsocketConnector
from empd.connectors.simulator.websocket import SimulatedWebSocket
from empd.connectors.simulator.wishes import Simulated
from empd.connectors.upstream import UpstreamHandle

KINDS = [SimulationWebsocketConnector, CustomWebSocketConnector]


@contextlib.asynccontextmanager
async def simulated(
    kind: type[Any], simulation: Simulated | None = None, **config: Any
) -> AsyncIterator[tuple[SimulatedWebSocket, Any]]:
    """The simulation and a connector to it; the custom one is that of the README."""
    server = SimulatedWebSocket(simulation)
    settings = {"url": await server.start(), "reconnect": SOON, **config}
    if kind is CustomWebSocketConnector:
        connector: Any = connector_of("pretend", {name: msgspec.to_builtins(value) for name, value in settings.items()})
    else:
        connector = kind(msgspec.convert(settings, kind.Config), Site(service="s"))
    assert await connector.start(), connector.reason
    try:
        yield server, connector
    finally:
        await connector.stop()
        await server.close()


def result_of(value: Any) -> Any:
    """What the work's payload came back as."""
    return value["echo"] if isinstance(value, dict) and "steps" in value else value


@pytest.mark.parametrize("kind", KINDS)
def test_many_jobs_with_progress(kind: type[Any]) -> None:
    async def run() -> None:
        async with simulated(kind) as (server, connector):
            contexts = [context_of({"n": n, "steps": 3, "duration_s": 0.02}, job_id=n) for n in range(1, 51)]
            found = await asyncio.gather(*(run_job(connector, context) for context in contexts))
            assert [result_of(value) for value in found] == [{"n": n} for n in range(1, 51)]
            fractions = [entry[1] for entry in contexts[0].port.said if entry[0] == "progress"]
            assert fractions == [1 / 3, 2 / 3, 1.0]
            assert sum(server.work.executions.values()) == 50

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("faults", [{"cut_after": 1}, {"cut_after": 0}, {"duplicate": True}])
def test_a_cut_in_the_middle_and_a_second_end_do_no_harm(kind: type[Any], faults: dict[str, Any]) -> None:
    async def run() -> None:
        async with simulated(kind) as (server, connector):
            for job_id in (1, 2):
                context = context_of({"n": 1, "steps": 4, "duration_s": 0.08, "faults": faults}, job_id=job_id)
                assert result_of(await run_job(connector, context)) == {"n": 1}
            assert len(server.cut) == (2 if "cut_after" in faults else 0)
            assert sum(server.work.executions.values()) == 2
            assert sum(server.work.calls.values()) == 2  # never handed over twice

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_has_forgotten_a_job_ends_the_attempt_uncharged(kind: type[Any]) -> None:
    async def run() -> None:
        async with simulated(kind) as (server, connector):
            job = asyncio.create_task(run_job(connector, context_of({"duration_s": 600})))
            await until(lambda: server.work.tasks)
            server.work.restart()
            server.break_all()
            with pytest.raises(ServiceUnavailable, match="does not know the job"):
                await job

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_a_deaf_peer_is_left_and_the_job_goes_on(kind: type[Any]) -> None:
    async def run() -> None:
        async with simulated(kind, heartbeat_interval_s=0.1, pong_timeout_s=0.5) as (server, connector):
            context = context_of({"n": 1, "steps": 2, "duration_s": 0.3, "faults": {"hang": True}})
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: server.work.tasks)
            await until(lambda: connector.socket.generation > 1)
            assert result_of(await job) == {"n": 1}
            assert sum(server.work.executions.values()) == 1

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_stops_the_work_there(kind: type[Any]) -> None:
    async def run() -> None:
        async with simulated(kind) as (server, connector):
            context = context_of({"duration_s": 600})
            job = asyncio.create_task(run_job(connector, context))
            await until(lambda: server.work.tasks)
            context.mark_stopping("cancelled")
            await connector.cancel(context.job, context)
            with pytest.raises(ConnectorError):
                await job
            assert server.work.ended["cancelled"] == 1

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_attempt_takes_up_the_work(kind: type[Any]) -> None:
    async def run() -> None:
        async with simulated(kind) as (server, connector):
            first = context_of({"n": 7, "duration_s": 0.3})
            job = asyncio.create_task(run_job(connector, first))
            await until(lambda: server.work.tasks)
            job.cancel()  # as the worker's death would
            with contextlib.suppress(asyncio.CancelledError):
                await job
            handle = UpstreamHandle.decode(first.last_checkpoint)
            assert handle is not None
            second = context_of({"n": 7, "duration_s": 0.3}, epoch=10, checkpoint=first.last_checkpoint)
            assert result_of(await run_job(connector, second)) == {"n": 7}
            assert dict(server.work.executions) == {handle.id: 1}

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_failures_and_refusals(kind: type[Any]) -> None:
    async def run() -> None:
        async with simulated(kind, Simulated(api_key="k"), auth={"type": "bearer", "token": "k"}) as (_, connector):
            with pytest.raises(ConnectorError, match="it failed, as it was asked to"):
                await run_job(connector, context_of({"fail": True}))
            with pytest.raises(ConnectorError, match="as it was asked for"):
                await run_job(connector, context_of({"faults": {"error_body": True}}, job_id=2))
            assert connector.socket.state is LinkState.OPEN

    asyncio.run(run())


# --- a stranger's service, by configuration --------------------------------------------------------------------------


async def stranger(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Logs callers in, gives jobs ids of its own, and speaks in words of its own."""
    if "hello" in message:
        await connection.send('{"event": "WELCOME"}')
        return
    number = len(server.got)
    meta = f'"meta": {{"task": {number}}}'
    await connection.send(f'{{"event": "ACCEPTED", {meta}, "for": "{message["ref"]}"}}')
    if message["text"] == "bad":
        await connection.send(f'{{"event": "OOPS", {meta}, "why": {{"code": "E1", "message": "no good"}}}}')
        return
    await connection.send(f'{{"event": "AT", {meta}, "percent": 50, "note": "half"}}')
    await connection.send(f'{{"event": "READY", {meta}, "data": [{{"text": "{message["text"]}!"}}]}}')


STRANGER: dict[str, Any] = {
    "messages": {
        "job": {"ref": "{job_id}", "text": "{payload/text}", "seed": "{payload/seed?}"},
        "login": {"hello": 1},
    },
    "places": {
        "type": "/event",
        "id": "/meta/task",
        "reference": "/for",
        "progress": "/percent",
        "message": "/note",
        "result": "/data/0/text",
        "error": "/why",
    },
    "words": {"submitted": ["accepted"], "progress": ["at"], "complete": ["ready"], "error": ["oops"]},
    "job_ids": "reference",
    "progress_scale": 100,
}


def test_a_service_that_nobody_foresaw_works_by_configuration() -> None:
    async def run() -> None:
        async with peer(stranger) as server:
            config = {**STRANGER, "url": server.url}
            connector = registry.build(CustomWebSocketConnector, config, Site(service="s"))
            assert isinstance(connector, CustomWebSocketConnector)
            assert await connector.start(), connector.reason
            contexts = [context_of({"text": f"t{n}"}, job_id=n) for n in range(20)]
            found = await asyncio.gather(*(run_job(connector, context) for context in contexts))
            assert found == [f"t{n}!" for n in range(20)]
            assert contexts[3].port.said == [("progress", 0.5, "half", 0, 0)]
            assert "seed" not in server.got[1]
            with pytest.raises(ConnectorError, match="no good"):
                await run_job(connector, context_of({"text": "bad"}, job_id=99))
            with pytest.raises(InvalidInput, match="nothing at /text"):
                await run_job(connector, context_of({}, job_id=100))
            await connector.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": {"job": "{nobody}"}}, "no place for a value"),
        ({"messages": {"job": 1, "cancel": "{payload}"}}, "no place for a value"),
        ({"places": {"id": "id"}}, "not a JSON pointer"),
        ({"messages": {}}, "job"),
        ({"job_ids": "whose"}, "job_ids"),
    ],
)
def test_a_wrong_configuration_is_said_before_any_job(change: dict[str, Any], words: str) -> None:
    with pytest.raises(registry.ConnectorUnavailable, match=words):
        registry.build(CustomWebSocketConnector, {**STRANGER, **change, "url": "ws://x/"}, Site(service="s"))


def test_the_command_serves_until_it_is_told_to_end() -> None:
    command = [sys.executable, "-m", "empd", "simulate", "--ws", "0", "--duration-s", "0", "--steps", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]

        async def run() -> None:
            connector = SimulationWebsocketConnector(SimulationWebsocketConnector.Config(url=url), Site(service="s"))
            assert await connector.start(), connector.reason
            assert result_of(await run_job(connector, context_of({"n": 1}))) == {"n": 1}
            await connector.stop()

        asyncio.run(run())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
