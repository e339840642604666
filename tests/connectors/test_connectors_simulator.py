"""The simulated HTTP service: its faults by request, its counters, and connectors and daemons that meet them."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_connectors_seam import context_of

from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.failures import BadResponse, ConnectorError, RateLimited, ServiceUnavailable
from empd.connectors.service.simulation_http import SimulationHttpConnector
from empd.connectors.simulator.http import SimulatedHTTP
from empd.connectors.simulator.wishes import Faults, Patience, Simulated, Wish, wish_of
from empd.connectors.simulator.work import Work
from empd.errors import JobCancelled, JobFailed
from tests.box import Box, mapping_of, service, wait_until

FAST: dict[str, Any] = {
    "retry": {"base_s": 0.001, "cap_s": 0.002},
    "poll_interval_s": 0.01,
    "poll_interval_s_max": 0.02,
}


class Server:
    """A simulated service in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = SimulatedHTTP()
        self.url = self._do(self._server.start())

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def get(self, path: str, method: str = "GET") -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=30) as answer:
            return json.load(answer)

    @property
    def counts(self) -> dict[str, Any]:
        return self.get("/_/counts")

    def close(self) -> None:
        self._do(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.get("/_/reset", "POST")
    return shared


def with_session(server: Server, use: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with aiohttp.ClientSession(server.url) as session:
            return await use(session)

    return asyncio.run(run())


def process(server: Server, payload: Any, **config: Any) -> Any:
    context = context_of(payload)

    async def run() -> Any:
        connector = registry.build(
            SimulationHttpConnector, {"base_url": server.url, **FAST, **config}, Site(service="s")
        )
        assert await connector.start(), connector.reason
        try:
            return await connector.process(context.job, context)
        finally:
            await connector.stop()

    return asyncio.run(run())


# --- the pure parts --------------------------------------------------------------------------------------------------


@given(st.floats(0, 100), st.integers(1, 50), st.lists(st.floats(0, 60), max_size=30))
def test_work_only_goes_forward(duration_s: float, steps: int, gaps: list[float]) -> None:
    work = Work(Simulated())
    task = work.submit({"x": 1}, Wish(duration_s=duration_s, steps=steps), "", 0.0)
    now_s, seen = 0.0, [task.step(0.0)]
    for gap_s in gaps:
        now_s += gap_s
        seen.append(task.step(now_s))
        assert task.view(now_s)["status"] == ("completed" if seen[-1] == steps else "running")
    assert seen == sorted(seen)
    assert task.step(duration_s + 1) == steps


def test_the_same_key_is_the_same_work_until_a_restart() -> None:
    work = Work(Simulated())
    one, two = (work.submit({}, Wish(), "key", 0.0) for _ in range(2))
    assert one is two
    assert work.submit({}, Wish(), "", 0.0) is not work.submit({}, Wish(), "", 0.0)
    assert work.counts(0.0)["submissions"]["key"] == {"calls": 2, "executions": 1}
    work.restart()
    assert work.ask(one.id) is None
    assert work.submit({}, Wish(), "key", 0.0) is not one


def test_a_fault_ends_after_its_times_for_each_key() -> None:
    patience = Patience()
    faults = Faults(status=503, times=2)
    assert [patience.strikes(faults, "/p", key) for key in "aaaba"] == [True, True, False, True, False]
    assert all(patience.strikes(Faults(status=503), "/p", "a") for _ in range(9))


@pytest.mark.parametrize("header", ["{", '{"status": 99}', '{"unknown": 1}', "[]"])
def test_a_wish_that_cannot_be_is_refused(header: str) -> None:
    with pytest.raises(ValueError):
        wish_of({}, header)


# --- the server's faults, seen with a bare client --------------------------------------------------------------------


def test_faults_come_by_body_or_header(server: Server) -> None:
    async def use(session: aiohttp.ClientSession) -> None:
        body = {"x": 1, "faults": {"status": 429, "retry_after_s": 7, "times": 1}}
        async with session.post("/process", json=body) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        async with session.post("/process", json=body) as answer:
            assert (await answer.json())["result"] == {"steps": 1, "echo": {"x": 1}}
        async with session.get("/health", headers={"X-Faults": '{"status": 503}'}) as answer:
            assert answer.status == 503
        async with session.post("/process", headers={"X-Faults": '{"error_body": true}'}) as answer:
            assert (answer.status, set(await answer.json())) == (200, {"error"})
        async with session.post("/process", json={"faults": {"slow_s": 0.05}}) as answer:
            assert (await answer.json())["status"] == "completed"
        async with session.post("/process", headers={"X-Faults": "nonsense"}) as answer:
            assert answer.status == 400
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.post("/process", json={"faults": {"cut_after": 5}}) as answer:
                await answer.read()
        with pytest.raises(TimeoutError):
            await session.post("/process", json={"faults": {"hang": True}}, timeout=aiohttp.ClientTimeout(total=0.05))

    with_session(server, use)
    wait_until(lambda: server.counts["hung_up"] >= 1, "the hang to be noticed")
    assert server.counts["requests"]["POST /process"] == 7


def test_an_answer_may_be_lost_after_the_work_was_done(server: Server) -> None:
    async def use(session: aiohttp.ClientSession) -> None:
        headers = {"Idempotency-Key": "k"}
        body = {"faults": {"status_after": 502, "times": 1}}
        async with session.post("/jobs", json=body, headers=headers) as answer:
            assert answer.status == 502
        async with session.post("/jobs", json=body, headers=headers) as answer:
            assert answer.status == 202

    with_session(server, use)
    assert server.counts["submissions"] == {"k": {"calls": 2, "executions": 1}}


def test_a_duplicate_completion_and_a_cut_in_mid_stream(server: Server) -> None:
    async def use(session: aiohttp.ClientSession) -> None:
        async with session.post("/stream", json={"steps": 2, "faults": {"duplicate": True}}) as answer:
            assert (await answer.text()).count("[DONE]") == 2
        with pytest.raises(aiohttp.ClientError):
            async with session.post("/stream", json={"steps": 9, "faults": {"cut_after": 3}}) as answer:
                await answer.read()

    with_session(server, use)


def test_callers_may_be_asked_who_they_are() -> None:
    async def run() -> None:
        simulated = SimulatedHTTP(Simulated(api_key="open"))
        await simulated.start()
        async with aiohttp.ClientSession(simulated.url) as session:
            for headers, status in ({}, 401), ({"X-API-Key": "open"}, 200), ({"Authorization": "Bearer open"}, 200):
                async with session.post("/process", headers=headers) as answer:
                    assert answer.status == status
        await simulated.close()

    asyncio.run(run())


# --- connectors against them -----------------------------------------------------------------------------------------


def test_the_simulations_connector_works_through_faults(server: Server) -> None:
    payload = {"x": 1, "duration_s": 0.05, "steps": 5, "faults": {"status": 503, "times": 2}}
    assert process(server, payload) == {"steps": 5, "echo": {"x": 1}}
    assert server.counts["requests"]["POST /jobs"] == 3
    assert server.counts["executions"] == 1


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"fail": True}, ConnectorError),
        ({"faults": {"error_body": True}}, BadResponse),
        ({"faults": {"forget_after": 0}}, ServiceUnavailable),
        ({"faults": {"status": 429, "retry_after_s": 600}}, RateLimited),
    ],
)
def test_what_cannot_be_repaired_is_told_as_what_it_is(
    server: Server, payload: dict[str, Any], kind: type[ConnectorError]
) -> None:
    with pytest.raises(kind) as caught:
        process(server, payload)
    assert type(caught.value) is kind


@pytest.mark.parametrize("mode", ["sse", "long_poll"])
def test_followed_events_survive_a_cut(server: Server, mode: str) -> None:
    async def run() -> Any:
        body = {"duration_s": 0.1, "steps": 6, "faults": {"cut_after": 2}} if mode == "sse" else {"steps": 6}
        async with aiohttp.ClientSession(server.url) as session, session.post("/jobs", json=body) as answer:
            job_id = (await answer.json())["id"]
        config = {
            "base_url": server.url,
            "endpoint": "/jobs/{payload/id}/" + ("events" if mode == "sse" else "poll"),
            "mode": mode,
            "reconnect_s": 0.001,
            "last_required": mode == "sse",
            "pieces": {"place": "/step", "done_events": ["completed"]},
        }
        connector = registry.build(registry.load_class("SSEConnector"), config, Site(service="s"))
        assert await connector.start()
        context = context_of({"id": job_id})
        try:
            return await connector.process(context.job, context)
        finally:
            await connector.stop()

    assert asyncio.run(run()) == [1, 2, 3, 4, 5, 6]


# --- the whole daemon ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(shared: Server) -> Iterator[Box]:
    config = {"base_url": shared.url, **FAST}
    rest = {
        **config,
        "endpoint": "/jobs",
        "status_path": "/jobs/{id}",
        "cancel_path": "/jobs/{id}/cancel",
        "idempotency_header": "Idempotency-Key",
        "places": {"result": "/result"},
    }
    mapping = mapping_of(
        simulated=service("SimulationHttpConnector", api_config=config),
        rest=service("RestAsyncConnector", api_config=rest),
        locked=service(
            "RestSyncConnector",
            api_config={
                "base_url": shared.url,
                "endpoint": "/process",
                "auth": {"type": "api_key", "api_key": "sesame-open-up", "query": "key"},
            },
        ),
    )
    with Box(mapping) as box:
        yield box


def test_a_killed_worker_leads_to_one_submission(server: Server, daemon: Box) -> None:
    with daemon.client() as client:
        handle = client.submit("rest", {"duration_s": 4, "steps": 3, "x": 7})
        wait_until(lambda: server.counts["requests"].get("GET /jobs/{id}", 0) >= 2, "the job to be polled")
        daemon.signal("rest-0", signal.SIGKILL)
        assert handle.result(timeout=60) == {"steps": 3, "echo": {"x": 7}}
    (submission,) = server.counts["submissions"].values()
    assert submission == {"calls": 1, "executions": 1}


def test_a_worker_killed_while_it_submits_leads_to_one_execution(server: Server, daemon: Box) -> None:
    """The service has taken the work on, and its answer never arrived: the same key gives the same work."""
    with daemon.client() as client:
        handle = client.submit("rest", {"x": 7, "duration_s": 0.1, "faults": {"slow_s": 5, "times": 1}})
        wait_until(lambda: server.counts["executions"] == 1, "the work to be taken on")
        daemon.signal("rest-0", signal.SIGKILL)
        assert handle.result(timeout=60)["echo"] == {"x": 7}
    (submission,) = server.counts["submissions"].values()
    assert submission == {"calls": 2, "executions": 1}


def test_cancel_reaches_the_upstream(server: Server, daemon: Box) -> None:
    with daemon.client() as client:
        handle = client.submit("simulated", {"duration_s": 600, "steps": 3})
        wait_until(lambda: server.counts["requests"].get("GET /jobs/{id}", 0) >= 1, "the job to be polled")
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(timeout=60)
    counts = server.counts
    assert counts["cancelled"] == 1
    assert counts["tasks"] == {"cancelled": 1}


def test_no_secret_is_told_by_a_failure_or_a_log(server: Server, daemon: Box) -> None:
    with daemon.client() as client:
        told = []
        for faults in ({"status": 401}, {"status": 500, "times": 1}, {"cut_after": 3}, {"error_body": True}):
            handle = client.submit("locked", {"q": "sesame-open-up", "faults": faults}, retries=0)
            try:
                told.append(str(handle.result(timeout=60)))
            except JobFailed as error:
                told.append(f"{error} {error.evidence}")
    assert "auth" in told[0]
    # The payload is the client's own, and comes back to it; nothing else says the secret.
    assert [text for text in told if "sesame-open-up" in text] == [told[1]]
    assert "sesame-open-up" not in daemon.log()


def test_the_command_serves_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "empd", "simulate", "--http", "0", "--duration-s", "0", "--steps", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        request = urllib.request.Request(f"{url}/process", data=b'{"a": 1}')
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["result"] == {"steps": 2, "echo": {"a": 1}}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
