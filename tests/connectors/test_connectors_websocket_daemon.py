"""WebSocket services through a whole daemon: a worker that dies, a connection that breaks, a cancel."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from test_connectors_readme import MAPPINGS

from empd.connectors.simulator.websocket import SimulatedWebSocket
from empd.errors import JobCancelled
from tests.box import Box, mapping_of, service, wait_until


class Server:
    """The simulation in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.simulated = SimulatedWebSocket()
        self.url = self.do(self.simulated.start())

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def requests(self, kind: str) -> int:
        return self.simulated.work.requests[kind]

    async def breaks(self) -> None:
        self.simulated.break_all()

    def close(self) -> None:
        self.do(self.simulated.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def daemon(server: Server) -> Iterator[Box]:
    custom = next(mapping for mapping in MAPPINGS if "pretend" in mapping["services"])["services"]["pretend"]
    reconnect = {"attempts_max": 20, "base_s": 0.02, "cap_s": 0.2}
    change = {"url": server.url, "reconnect": reconnect}
    mapping = mapping_of(
        simulated=service("SimulationWebsocketConnector", api_config=change),
        pretend=service("CustomWebSocketConnector", api_config={**custom["api_config"], **change}),
    )
    with Box(mapping) as box:
        yield box


@pytest.mark.parametrize("name", ["simulated", "pretend"])
def test_a_killed_worker_leads_to_one_submission(server: Server, daemon: Box, name: str) -> None:
    before = server.requests("simulation_job")
    with daemon.client() as client:
        handle = client.submit(name, {"duration_s": 4, "steps": 4, "x": name})
        wait_until(lambda: server.requests("simulation_job") > before, "the job to be handed over")
        daemon.signal(f"{name}-0", signal.SIGKILL)
        result = handle.result(timeout=60)
    assert result in ({"steps": 4, "echo": {"x": name}}, {"x": name})
    assert server.requests("simulation_job") == before + 1


def test_a_broken_connection_is_nothing_that_a_job_sees(server: Server, daemon: Box) -> None:
    before = server.requests("simulation_job")
    with daemon.client() as client:
        handle = client.submit("simulated", {"duration_s": 3, "steps": 4}, retries=0)
        wait_until(lambda: server.requests("simulation_job") > before, "the job to be handed over")
        server.do(server.breaks())
        assert handle.result(timeout=60)["steps"] == 4
    assert server.requests("simulation_job") == before + 1


def test_cancel_reaches_the_upstream(server: Server, daemon: Box) -> None:
    before = server.requests("simulation_job")
    with daemon.client() as client:
        handle = client.submit("simulated", {"duration_s": 600})
        wait_until(lambda: server.requests("simulation_job") > before, "the job to be handed over")
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(timeout=60)
    assert server.simulated.work.ended["cancelled"] == 1
