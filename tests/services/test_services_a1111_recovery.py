"""Automatic1111: what is journaled of a call, and what becomes of one whose worker has died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from services_world import context_of, port_of

from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError
from empd.connectors.service.a1111 import earlier
from empd.connectors.service.a1111.batch import A1111BatchConnector
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.earlier import settle
from empd.connectors.service.a1111.live import A1111WebSocketConnector
from empd.connectors.service.a1111.rest import A1111RestConnector
from empd.connectors.service.a1111.task import Look, Standing, Task
from empd.connectors.upstream import UpstreamHandle
from empd.errors import FailureClass
from empd.job import format_id
from tests.doubles.a1111 import A1111Double, Failure, picture

FAST = {"poll_interval_s": 0.01, "retry": {"attempts_max": 2, "base_s": 0.001}}
WAIT_S = 60.0
NEIGHBOUR = "task(theirs)"
KINDS = pytest.mark.parametrize("kind", [A1111RestConnector, A1111WebSocketConnector])
Body = Callable[[A1111Double, Any], Awaitable[None]]


def against(
    body: Body, kind: type[A1111Connector] = A1111RestConnector, config: dict[str, Any] | None = None, page: bool = True
) -> None:
    """Runs a test's body with a double, where nothing is about to end, and a connector to it."""

    async def run() -> None:
        async with A1111Double(page=page) as server, asyncio.timeout(WAIT_S):
            server.eta_s = 60.0
            connector = registry.build(kind, {"base_url": server.url, **FAST, **(config or {})}, Site(service="s"))
            assert await connector.start(), connector.reason
            try:
                await body(server, connector)
            finally:
                server.gate.set()
                await connector.stop()

    asyncio.run(run())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def journaled(context: Context) -> UpstreamHandle:
    """What the next attempt would get."""
    handle = UpstreamHandle.decode(port_of(context).checkpoints()[-1])
    assert handle is not None
    return handle


def orphan_of(epoch: int = 8) -> str:
    context = context_of(None)
    return f"task(empd-{context.instance[:8]}-{format_id(context.job_id)}-{epoch:x})"


def successor(payload: Any, url: str = "", epoch: int = 9) -> Context:
    """An attempt after one whose call for `orphan_of()` was journaled, and whose worker then died."""
    handle = UpstreamHandle("a1111", orphan_of(), 8, 1, False, {"url": url} if url else {})
    return context_of(payload, checkpoint=handle.encode(), epoch=epoch)


class Calls:
    """What others have the server do."""

    def __init__(self, server: A1111Double, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session

    async def __call__(self, task: str, steps: int = 100_000) -> asyncio.Task[Any]:
        """A call that the server has begun with or put into its queue."""
        running = asyncio.create_task(self._post({"force_task_id": task, "steps": steps}))
        await until(lambda: task in (self._server.current, *self._server.pending))
        return running

    async def _post(self, body: Any) -> Any:
        async with self._session.post(f"{self._server.url}/sdapi/v1/txt2img", json=body) as answer:
            return await answer.json()


def with_calls(body: Callable[[A1111Double, Any, Calls], Awaitable[None]], **options: Any) -> None:
    async def run(server: A1111Double, connector: Any) -> None:
        async with aiohttp.ClientSession() as session:
            await body(server, connector, Calls(server, session))

    against(run, **options)


# --- what is journaled -----------------------------------------------------------------------------------------------


def test_the_intent_is_journaled_before_the_call_and_an_end_that_is_told_after_it() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.gate.clear()
        context = context_of({"steps": 3})
        running = asyncio.create_task(connector.process(context.job, context))
        await until(lambda: server.bodies)
        handle = journaled(context)
        assert (handle.kind, handle.id, handle.submitted_epoch) == ("a1111", server.bodies[0]["force_task_id"], 9)
        assert (handle.ended, handle.extra) == (False, {"url": server.url})
        server.gate.set()
        await running
        server.failing = Failure("OutOfMemoryError")
        context = context_of({"steps": 1}, epoch=10)
        with pytest.raises(ConnectorError):
            await connector.process(context.job, context)
        assert journaled(context).ended

    against(body)


def test_an_end_that_nobody_told_is_none() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.gate.clear()
        context = context_of({"steps": 3})
        running = asyncio.create_task(connector.process(context.job, context))
        await until(lambda: server.current)
        await server.stop()
        with pytest.raises(ConnectorError):
            await running
        assert not journaled(context).ended

    against(body)


def test_a_job_that_is_to_stop_while_its_intent_is_journaled_is_not_sent() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context = context_of({"steps": 3})
        port, stopping = port_of(context), []
        keep = port.checkpoint

        async def checkpoint(of: Context, data: bytes, doubt: str) -> None:
            await keep(of, data, doubt)
            context.mark_stopping("cancelled")
            stopping.append(asyncio.create_task(connector.cancel(context.job, context)))
            await asyncio.sleep(0)

        port.checkpoint = checkpoint  # type: ignore[method-assign]
        with pytest.raises(ConnectorError, match="before it had begun"):
            await connector.process(context.job, context)
        await stopping[0]  # it does not wait for what never began
        assert not server.bodies

    against(body)


# --- what an earlier attempt left ------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("page", [True, False])
def test_a_task_that_runs_is_stopped_before_the_job_is_sent_again(kind: type[A1111Connector], page: bool) -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        left = await calls(orphan_of())
        context = successor({"steps": 1})
        result = await connector.process(context.job, context)
        assert result.value["images"]
        await left
        assert server.interrupts == [orphan_of()]
        assert [body["force_task_id"] for body in server.bodies] == [orphan_of(), orphan_of(9)]
        assert server.finished == [orphan_of(), orphan_of(9)]
        (line,) = port_of(context).lines()
        assert line.startswith("an earlier submission to a1111 (epoch 8) had arrived and was interrupted")
        assert journaled(context).submission == 2

    with_calls(body, kind=kind, page=page, config={"exclusive": not page})


@KINDS
def test_one_that_waits_is_waited_for_and_its_neighbour_left_alone(kind: type[A1111Connector]) -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        server.gate.clear()
        theirs = await calls(NEIGHBOUR, steps=3)
        left = await calls(orphan_of())
        context = successor({"steps": 1})
        running = asyncio.create_task(connector.process(context.job, context))
        await until(lambda: any("is queued" in str(said) for said in port_of(context).said))
        assert (len(server.bodies), server.interrupts) == (2, [])
        server.gate.set()
        assert (await running).value["images"]
        assert len((await theirs)["images"]) == 1
        await left
        assert server.interrupts == [orphan_of()]
        assert server.started == [NEIGHBOUR, orphan_of(), orphan_of(9)]

    with_calls(body, kind=kind)


def test_one_that_is_about_to_end_does_so_by_itself() -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        left = await calls(orphan_of(), steps=4000)
        await until(lambda: server.step > 2)
        server.gate.clear()
        server.eta_s = 1.0
        context = successor({"steps": 1})
        running = asyncio.create_task(connector.process(context.job, context))
        looks = server.looks
        await until(lambda: server.looks > looks + 3)
        assert (len(server.bodies), server.interrupts) == (1, [])
        server._state["interrupted"] = True  # it ends now, by no call of anybody
        server.gate.set()
        await running
        await left
        (line,) = port_of(context).lines()
        assert "has come to its end, unread" in line
        assert server.interrupts == []

    with_calls(body)


def test_one_that_has_ended_or_failed_is_not_looked_for_any_longer() -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        await (await calls(orphan_of(), steps=1))
        for failing in (None, Failure("RuntimeError")):
            if failing is not None:
                server.finished.clear()
                server.failing = failing
                left = asyncio.create_task(calls._post({"force_task_id": orphan_of(), "steps": 1}))
                await left
                assert server.current == orphan_of()  # as the server leaves it
                server.failing = None
            context = successor({"steps": 1})
            assert (await connector.process(context.job, context)).value["images"]
            (line,) = port_of(context).lines()
            assert "has come to its end, unread; this attempt sends it again" in line
        assert server.interrupts == []

    with_calls(body)


@pytest.mark.parametrize("page", [True, False])
def test_what_cannot_be_known_is_a_doubt_that_can_be_forbidden(page: bool) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context = successor({"steps": 1})
        assert (await connector.process(context.job, context)).value["images"]
        (line,) = port_of(context).lines()
        assert "(epoch 8) may have arrived; this attempt sends it again" in line
        connector.config.retry = msgspec.structs.replace(connector.config.retry, repeat_in_doubt=False)
        context, count = successor({"steps": 1}), len(server.bodies)
        with pytest.raises(ConnectorError, match=r"not sent again: .* may have arrived") as caught:
            await connector.process(context.job, context)
        assert not caught.value.retry
        assert len(server.bodies) == count

    against(body, page=page)


def test_one_that_waits_while_the_server_does_nothing_is_a_doubt_and_stopped_if_it_runs_after_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(earlier, "IDLE_LOOKS", 3)

    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        context = successor({"steps": 1})
        async with server._lock:  # as while it loads a model
            left = await calls(orphan_of())
            running = asyncio.create_task(connector.process(context.job, context))
            await until(lambda: len(server.pending) == 2)
        await running
        await left
        assert server.interrupts == [orphan_of()]
        assert "may have arrived" in port_of(context).lines()[0]

    with_calls(body)


def test_one_that_failed_before_it_began_stays_in_the_queue_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(earlier, "IDLE_LOOKS", 3)

    async def body(server: A1111Double, connector: A1111Connector) -> None:
        failing = {"force_task_id": orphan_of(), "init_images": ["bm8gcGljdHVyZQ=="]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/sdapi/v1/img2img", json=failing) as no,
        ):
            assert no.status == 500
        assert server.pending == [orphan_of()]
        context = successor({"steps": 1})
        assert (await connector.process(context.job, context)).value["images"]

    against(body)


def test_one_that_failed_is_not_taken_for_what_runs_without_a_task() -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        server.failing = Failure("RuntimeError")
        await calls._post({"force_task_id": orphan_of(), "steps": 1})
        server.failing = None
        server.gate.clear()
        async with aiohttp.ClientSession() as session:
            upscaling = {"image": picture(1), "upscaler_1": "Lanczos"}
            theirs = asyncio.create_task(session.post(f"{server.url}/sdapi/v1/extra-single-image", json=upscaling))
            await until(lambda: server._state["job"] == "extras")
            look = await connector.look(orphan_of(), server.url)
            assert (look.standing, look.working) == (Standing.ENDED, True)
            server.gate.set()
            assert (await theirs).status == 200
        assert server.interrupts == []

    with_calls(body)


def test_a_job_that_is_cancelled_meanwhile_ends_when_the_task_has() -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        server.gate.clear()
        theirs, left = await calls(NEIGHBOUR, steps=3), await calls(orphan_of())
        context = successor({"steps": 1})
        running = asyncio.create_task(connector.process(context.job, context))
        await until(lambda: any("is queued" in str(said) for said in port_of(context).said))
        context.mark_stopping("cancelled")
        await connector.cancel(context.job, context)
        server.gate.set()
        with pytest.raises(ConnectorError) as caught:
            await running
        assert caught.value.failure is FailureClass.CANCELLED
        await asyncio.gather(theirs, left)
        assert server.interrupts == [orphan_of()]
        assert len(server.bodies) == 2

    with_calls(body)


def test_a_worker_that_has_to_go_leaves_it_to_the_next_attempt() -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        server.gate.clear()
        await calls(NEIGHBOUR, steps=3)
        await calls(orphan_of(), steps=3)
        context = successor({"steps": 1})
        running = asyncio.create_task(connector.process(context.job, context))
        await until(lambda: any("is queued" in str(said) for said in port_of(context).said))
        context.mark_stopping("drain")
        with pytest.raises(ConnectorError):
            await running
        assert not port_of(context).checkpoints()  # what was journaled stands
        assert not server.interrupts

    with_calls(body)


def test_a_task_at_another_gpus_server_is_stopped_there() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        async with A1111Double() as other, aiohttp.ClientSession() as session:
            other.eta_s = 60.0
            left = await Calls(other, session)(orphan_of())
            context = successor({"steps": 1}, other.url)
            await connector.process(context.job, context)
            await left
            assert (other.interrupts, server.interrupts) == ([orphan_of()], [])
            assert server.started == [orphan_of(9)]
            await other.stop()
            context = successor({"steps": 1}, other.url, epoch=10)
            await connector.process(context.job, context)
            assert "may have arrived" in port_of(context).lines()[0]

    against(body)


# --- the moment between two tasks ------------------------------------------------------------------------------------


class Scripted:
    """A server whose looks are known beforehand."""

    base_url = "http://here"
    poll_interval_s = 0.001

    def __init__(self, *looks: Look) -> None:
        self._looks = list(looks)
        self.interrupts = 0

    async def look(self, task_id: str, url: str = "", shown: int | None = None) -> Look:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]

    async def interrupt(self, url: str = "") -> None:
        self.interrupts += 1

    async def generate(self, route: str, body: dict[str, Any], context: Context) -> Any:
        await until(lambda: len(self._looks) == 1)
        return {}


@pytest.mark.parametrize(("looks", "interrupts"), [(1, 0), (2, 1), (4, 1)])
def test_it_is_interrupted_once_and_not_by_what_was_seen_but_for_a_moment(looks: int, interrupts: int) -> None:
    async def run() -> None:
        runs = Look(Standing.RUNNING, working=True, fraction=0.5, eta_s=60.0)
        server, context = Scripted(*[runs] * looks, Look(Standing.ENDED)), successor({})
        await settle(server, context, context.progress)
        assert journaled(context).ended
        assert server.interrupts == interrupts

    asyncio.run(run())


@pytest.mark.parametrize("seen_first", [True, False])
def test_an_interrupt_of_the_task_before_is_not_taken_for_one_of_this(seen_first: bool) -> None:
    async def run() -> None:
        hit, whole = Look(Standing.RUNNING, working=True, interrupted=True), Look(Standing.RUNNING, working=True)
        server, context = Scripted(*((hit, whole) if seen_first else (whole, hit)), Look()), context_of({})
        task = Task(server, orphan_of(), "", context, context.progress)
        if seen_first:
            assert await task.execute("txt2img", {}) == {}
        else:
            with pytest.raises(ConnectorError, match="somebody else interrupted"):
                await task.execute("txt2img", {})

    asyncio.run(run())


def test_a_task_that_begins_between_two_looks_at_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(server: A1111Double, connector: A1111Connector, calls: Calls) -> None:
        left, whole, before = await calls(orphan_of()), connector._whole, [Look()]

        async def late(at: str, again: bool, preview: bool) -> Look:
            return before.pop() if before else await whole(at, again, preview)

        monkeypatch.setattr(connector, "_whole", late)
        assert (await connector.look(orphan_of())).runs
        await connector.interrupt()
        await left

    with_calls(body)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_of_a_batch_the_item_that_ran_is_stopped_and_made_again() -> None:
    async def body(server: A1111Double, connector: A1111BatchConnector) -> None:
        payload = {"items": [{"seed": 1}, {"seed": 2}, {"seed": 3}], "shared": {"steps": 2}}
        first = context_of(payload)
        running = asyncio.create_task(connector.process(first.job, first))
        await until(lambda: len(server.started) == 1)
        server.steps_max = 100_000
        await until(lambda: len(server.finished) == 1)
        await until(lambda: len(server.started) == 2)
        orphan = server.current
        running.cancel()  # as its worker dies: the server does not see it
        await asyncio.wait((running,))
        server.steps_max = 2
        second = context_of(payload, checkpoint=port_of(first).checkpoints()[-1], epoch=10)
        result = await connector.resume(second.job, second)
        assert result.value["completed"] == 3
        assert [body["seed"] for body in server.bodies] == [1, 2, 2, 3]
        assert set(port_of(second).store.saved) == {1000, 2000}
        assert orphan in server.finished

    against(body, A1111BatchConnector)


def test_of_a_batch_items_that_failed_have_another_chance() -> None:
    async def body(server: A1111Double, connector: A1111BatchConnector) -> None:
        payload = {"items": [{"sampler_name": "Nobody"}, {"seed": 2}], "shared": {"steps": 1}}
        first = context_of(payload)
        await connector.process(first.job, first)
        payload["items"][0] = {"seed": 1}  # as if the server had the sampler now
        second = context_of(payload, checkpoint=port_of(first).checkpoints()[-1], epoch=10)
        result = await connector.resume(second.job, second)
        assert (result.value["completed"], result.value["failed"]) == (2, 0)
        assert [body["seed"] for body in server.bodies[1:]] == [1]

    against(body, A1111BatchConnector)
