"""The A1111 connectors against a server: the double, or the one that A1111_URL names (`make test-a1111`).

Small pictures of few steps, so that a server without a GPU makes them too. It needs a checkpoint, of whatever kind;
what needs two is left out where there is one, what needs the server's page where it runs without (`--nowebui`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from services_world import context_of, port_of

from empd.cli.demo.png import Picture, encode
from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError, InvalidInput, NotFound
from empd.connectors.service.a1111 import earlier
from empd.connectors.service.a1111.batch import A1111BatchConnector
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.live import A1111WebSocketConnector
from empd.connectors.service.a1111.request import LISTS
from empd.connectors.service.a1111.rest import A1111RestConnector
from empd.connectors.service.a1111.task import Standing
from empd.connectors.upstream import UpstreamHandle
from empd.errors import FailureClass
from tests.doubles.a1111 import A1111Double

URL = os.environ.get("A1111_URL", "").rstrip("/")
USER, _, PASSWORD = os.environ.get("A1111_AUTH", "").partition(":")
AUTH = {"auth": {"type": "basic", "username": USER, "password": PASSWORD}} if USER else {}

WAIT_S = 120.0
FAST = {"poll_interval_s": 0.05, "retry": {"attempts_max": 2, "base_s": 0.05}}
SMALL: dict[str, Any] = {"prompt": "a small square", "width": 64, "height": 64, "steps": 3}
LONG = {**SMALL, "steps": 20_000}
PNG = encode(Picture(64, 64, 3, [bytes((200, 30, 30)) * 64] * 64))
WHITE = encode(Picture(64, 64, 3, [b"\xff" * 3 * 64] * 64))

KINDS = pytest.mark.parametrize("kind", [A1111RestConnector, A1111WebSocketConnector])
Body = Callable[[Any], Awaitable[None]]


@contextlib.asynccontextmanager
async def a_server() -> AsyncIterator[str]:
    """Its URL."""
    if URL:
        yield URL
        return
    async with A1111Double(step_s=0.02) as double:
        yield double.url


def against_a_server(
    body: Body, kind: type[A1111Connector] = A1111RestConnector, page: bool = False, **config: Any
) -> None:
    """Runs a test's body with a connector to a server at rest. `page`: the body needs the server's page."""

    async def run() -> None:
        async with a_server() as url, asyncio.timeout(2 * WAIT_S):
            connector = registry.build(kind, {"base_url": url, **FAST, **AUTH, **config}, Site(service="s"))
            assert isinstance(connector, A1111Connector)
            assert await connector.start(), connector.reason
            try:
                await connector.look("")
                if page and not connector._has_page:
                    pytest.skip("the server has no page")
                connector.config.exclusive = not connector._has_page
                await body(connector)
            finally:
                await connector.interrupt()  # nothing of a test that failed goes on
                await connector.stop()

    asyncio.run(run())


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


def attempt(payload: Any, **more: Any) -> Context:
    """At a job that the server has not heard of, even one that lives on."""
    context = context_of(payload, timeout_s=WAIT_S, **more)
    context.job.id = random.getrandbits(40)
    return context


async def do(connector: A1111Connector, payload: Any) -> Any:
    context = attempt(payload)
    return (await connector.process(context.job, context)).value


class Job:
    """An attempt in a task of its own."""

    def __init__(self, connector: A1111Connector, payload: Any) -> None:
        self.connector = connector
        self.context = attempt(payload)
        self.port = port_of(self.context)
        self.task = asyncio.create_task(connector.process(self.context.job, self.context))

    async def runs(self) -> None:
        """Returns when the server has begun to sample for it."""
        await until(lambda: self._at(0.0))

    async def _at(self, fraction: float) -> bool:
        return self.task.done() or max(self.port.fractions(), default=0.0) > fraction

    async def is_queued(self) -> None:
        async def told() -> bool:
            return any("queue" in str(said) for said in self.port.said)

        await until(told)

    async def cancel(self) -> ConnectorError:
        """As a worker does; gives what the attempt ended with."""
        self.context.mark_stopping("cancelled")
        await self.connector.cancel(self.context.job, self.context)
        return await self.error()

    async def error(self) -> ConnectorError:
        with pytest.raises(ConnectorError) as caught:
            await self.task
        return caught.value


class Calls:
    """What others have the server do, without the connector."""

    def __init__(self, connector: A1111Connector, session: aiohttp.ClientSession) -> None:
        self._url = connector.base_url
        self._session = session

    async def __call__(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        auth = aiohttp.encode_basic_auth(USER, PASSWORD) if USER else ""
        headers = {"Authorization": auth} if USER else {}
        async with self._session.post(f"{self._url}/sdapi/v1/{route}", json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    def begin(self, **body: Any) -> asyncio.Task[tuple[int, Any]]:
        return asyncio.create_task(self("txt2img", {**SMALL, "sampler_name": "Euler", **body}))


@contextlib.asynccontextmanager
async def others(connector: A1111Connector) -> AsyncIterator[Calls]:
    async with aiohttp.ClientSession() as session:
        yield Calls(connector, session)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_server_is_well_and_tells_of_itself() -> None:
    async def body(connector: A1111Connector) -> None:
        info = await connector.service_info()
        assert info["models"]
        assert "Euler a" in info["samplers"]
        assert info["running"] is None
        assert set(await connector.models())
        for operation in LISTS:
            context = attempt({"operation": operation})
            assert await connector.process(context.job, context) is not None, operation
        context = attempt({"operation": "flags"})
        flags = await connector.process(context.job, context)
        assert flags["api"]
        assert "api_auth" not in flags

    against_a_server(body)


def test_a_prompt_becomes_the_picture_of_its_seed() -> None:
    async def body(connector: A1111Connector) -> None:
        job = Job(connector, {**SMALL, "seed": 7})
        value = (await job.task).value
        (image,) = value["images"]
        assert (image["kind"], image["seed"], image["asset"].media_type) == ("image", 7, "image/png")
        assert "Seed: 7" in image["infotext"]
        assert (value["steps"], value["sampler_name"], value["width"]) == (3, "Euler a", 64)
        assert value["sd_model_name"] in await connector.models()
        assert job.port.store.saved[0].startswith(b"\x89PNG")

    against_a_server(body)


def test_of_a_batch_each_picture_has_its_seed_and_a_grid_is_made_when_asked_for() -> None:
    async def body(connector: A1111Connector) -> None:
        batch = {**SMALL, "steps": 1, "seed": 5, "batch_size": 2, "n_iter": 2}
        images = (await do(connector, batch))["images"]
        assert [(image["kind"], image["seed"]) for image in images] == [("image", seed) for seed in (5, 6, 7, 8)]
        assert all(f"Seed: {image['seed']}" in image["infotext"] for image in images)
        images = (await do(connector, {**batch, "grid": True}))["images"]
        assert [image["kind"] for image in images] == ["grid", *["image"] * 4]
        assert [image["seed"] for image in images[1:]] == [5, 6, 7, 8]

    against_a_server(body)


@pytest.mark.parametrize(
    "more",
    [{}, {"mask": WHITE}, {"mask": WHITE, "inpaint_full_res": True, "inpainting_fill": 1}, {"denoising_strength": 0.2}],
)
@pytest.mark.parametrize("form", [PNG, f"data:image/png;base64,{base64.b64encode(PNG).decode()}"])
def test_a_picture_is_changed(more: dict[str, Any], form: Any) -> None:
    async def body(connector: A1111Connector) -> None:
        value = await do(connector, {**SMALL, "init_images": [form], "seed": 9, **more})
        assert [(image["kind"], image["seed"]) for image in value["images"]] == [("image", 9)]

    against_a_server(body)


def test_a_model_is_loaded_for_the_job_that_names_it_and_for_no_other() -> None:
    async def body(connector: A1111Connector) -> None:
        own = (await do(connector, SMALL))["sd_model_name"]
        listed = await connector.listed("sd-models") or []
        other = next((model["model_name"] for model in listed if model["model_name"] != own), None)
        if other is None:
            pytest.skip("the server has one checkpoint")
        before = (await connector.options())["sd_model_checkpoint"]
        assert (await do(connector, {**SMALL, "model": other}))["sd_model_name"] == other
        if any(model.get("sha256") for model in await connector.listed("sd-models") or ()):
            assert other in await connector.models()
        assert (await connector.options())["sd_model_checkpoint"] == before
        assert (await do(connector, SMALL))["sd_model_name"] == own

    against_a_server(body)


def test_a_model_that_was_let_go_is_loaded_again() -> None:
    async def body(connector: A1111Connector) -> None:
        connector.config.unload_after_job = True
        for _ in range(2):
            assert (await do(connector, SMALL))["images"]

    against_a_server(body)


def test_extras_and_infotexts() -> None:
    async def body(connector: A1111Connector) -> None:
        job = Job(connector, SMALL)
        await job.task
        picture = job.port.store.saved[0]
        one = await do(connector, {"operation": "extras", "image": picture, "upscaler_1": "Lanczos"})
        assert len(one["images"]) == 1
        assert len((await do(connector, {"operation": "extras", "images": [picture, PNG]}))["images"]) == 2
        context = attempt({"operation": "png_info", "image": picture})
        assert "Steps" in (await connector.process(context.job, context))["parameters"]
        with pytest.raises(InvalidInput, match="Nobody"):
            await do(connector, {"operation": "extras", "image": PNG, "upscaler_1": "Nobody"})

    against_a_server(body)


def test_a_question_is_answered_or_fails() -> None:
    async def body(connector: A1111Connector) -> None:
        context = attempt({"operation": "interrogate", "image": PNG})
        try:
            assert (await connector.process(context.job, context))["caption"]
        except ConnectorError as error:
            assert "could not look at the picture" in error.message  # the models that it takes are not there
        context = attempt({"operation": "interrogate", "image": PNG, "model": "nosuch"})
        with pytest.raises(NotFound, match="Model not found"):
            await connector.process(context.job, context)

    against_a_server(body)


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"sampler_name": "Nobody"}, "no sampler 'Nobody'; it has: .*Euler a"),
        ({"sampler_name": "Nobody Karras"}, "no sampler"),
        ({"scheduler": "nobody"}, "no scheduler 'nobody'; it has: Automatic"),
        ({"model": "nosuch"}, "no model 'nosuch'"),
        ({"vae": "nosuch.pt"}, "no VAE 'nosuch.pt'"),
        ({"loras": ["nosuch"]}, "no LoRA 'nosuch'"),
    ],
)
def test_what_the_server_would_replace_without_a_word_is_told(asked: dict[str, Any], problem: str) -> None:
    async def body(connector: A1111Connector) -> None:
        with pytest.raises(NotFound, match=problem):
            await do(connector, {**SMALL, **asked})

    against_a_server(body)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({"sampler_name": "euler"}, "Euler"),
        ({"sampler_name": "k_euler_a"}, "Euler a"),
        ({"sampler_name": "DPM++ 2M Karras"}, "DPM++ 2M"),
        ({"sampler_index": "Euler", "scheduler": "karras"}, "Euler"),
    ],
)
def test_names_are_those_of_the_server_however_they_are_written(asked: dict[str, Any], used: str) -> None:
    async def body(connector: A1111Connector) -> None:
        assert (await do(connector, {**SMALL, **asked}))["sampler_name"] == used

    against_a_server(body)


_F = FailureClass


@pytest.mark.parametrize(
    ("asked", "failure", "retry", "problem"),
    [
        ({"script_name": "nobody"}, _F.INVALID_INPUT, False, "Script 'nobody' not found"),
        ({"alwayson_scripts": {"nobody": {}}}, _F.INVALID_INPUT, False, "Script 'nobody' not found"),
        ({"alwayson_scripts": {"x/y/z plot": {}}}, _F.INVALID_INPUT, False, "Cannot have a selectable script"),
        ({"init_images": ["bm8gcGljdHVyZQ=="]}, _F.INVALID_INPUT, False, "Invalid encoded image"),
        ({"init_images": [PNG], "mask": "bm8gcGljdHVyZQ=="}, _F.INVALID_INPUT, False, "Invalid encoded image"),
        ({"init_images": ["http://10.0.0.1/x.png"]}, _F.INVALID_INPUT, False, "local resource not allowed"),
        ({"override_settings": {"nosuch": 1}}, _F.INTERNAL, True, "nosuch"),
    ],
)
def test_what_the_server_refuses_has_its_class_and_its_words(
    asked: dict[str, Any], failure: FailureClass, retry: bool, problem: str
) -> None:
    async def body(connector: A1111Connector) -> None:
        with pytest.raises(ConnectorError, match=problem) as caught:
            await do(connector, {**SMALL, **asked})
        assert (caught.value.failure, caught.value.retry) == (failure, retry)
        assert (await do(connector, SMALL))["images"]

    against_a_server(body)


@pytest.mark.parametrize(
    ("options", "failure", "problem"),
    [
        ({"sd_model_checkpoint": "nosuch"}, _F.UNAVAILABLE, "model 'nosuch' not found"),
        ({"nosuch": 1}, _F.INTERNAL, "nosuch"),
    ],
)
def test_settings_that_cannot_be_are_told(options: dict[str, Any], failure: FailureClass, problem: str) -> None:
    async def body(connector: A1111Connector) -> None:
        context = attempt({"operation": "set_options", "options": options})
        with pytest.raises(ConnectorError, match=problem) as caught:
            await connector.process(context.job, context)
        assert caught.value.failure is failure

    against_a_server(body)


def test_items_of_a_batch_end_each_in_its_own_way() -> None:
    async def body(connector: A1111BatchConnector) -> None:
        items = [{"seed": 1}, {"script_name": "nobody"}, {"seed": 2}]
        value = await do(connector, {"shared": SMALL, "items": items, "item_retries": 0})
        assert (value["completed"], value["failed"]) == (2, 1)
        assert [item.get("images", [{}])[0].get("seed") for item in value["items"]] == [1, None, 2]

    against_a_server(body, A1111BatchConnector)


# --- progress and interrupts -----------------------------------------------------------------------------------------


@KINDS
def test_progress_rises_and_previews_are_shown(kind: type[A1111Connector]) -> None:
    async def body(connector: A1111Connector) -> None:
        job = Job(connector, {**SMALL, "steps": 60})
        assert (await job.task).value["images"]
        fractions = job.port.fractions()
        assert fractions == sorted(fractions)
        assert len(set(fractions)) >= 3
        previews = [base64.b64decode(said["image"]) for said in job.port.partials()]
        assert previews
        assert all(data.startswith(b"\x89PNG") for data in previews)

    against_a_server(body, kind)


@KINDS
def test_a_cancelled_job_is_interrupted(kind: type[A1111Connector]) -> None:
    async def body(connector: A1111Connector) -> None:
        job = Job(connector, LONG)
        await job.runs()
        assert (await job.cancel()).failure is FailureClass.CANCELLED
        assert not job.port.store.saved
        assert not (await connector.look("")).working

    against_a_server(body, kind)


def test_a_job_that_waits_is_cancelled_without_harm_to_what_runs() -> None:
    async def body(connector: A1111Connector) -> None:
        async with others(connector) as calls:
            theirs = calls.begin(force_task_id=f"task({random.getrandbits(40):x})", steps=40, seed=3)
            await until(lambda: _works(connector))
            job = Job(connector, LONG)
            await job.is_queued()
            assert (await job.cancel()).failure is FailureClass.CANCELLED
            status, answer = await theirs
            assert (status, len(answer["images"])) == (200, 1)
            # It was not touched: its picture is the one that it gets when nobody cancels anything.
            again = await calls.begin(steps=40, seed=3)
            assert answer["images"] == again[1]["images"]

    against_a_server(body, page=True)


async def _works(connector: A1111Connector) -> bool:
    return (await connector.look("")).step > 1


def test_two_jobs_at_once_run_one_after_the_other_and_each_knows_where_it_is() -> None:
    async def body(connector: A1111Connector) -> None:
        first = Job(connector, {**SMALL, "steps": 40, "seed": 1})
        await first.runs()
        second = Job(connector, {**SMALL, "seed": 2})
        await second.is_queued()
        seeds = [(await job.task).value["images"][0]["seed"] for job in (first, second)]
        assert seeds == [1, 2]
        assert any("In queue: " in str(said) for said in second.port.said)

    against_a_server(body, page=True)


def test_what_somebody_else_interrupts_is_no_result() -> None:
    async def body(connector: A1111Connector) -> None:
        job = Job(connector, LONG)
        await job.runs()
        async with others(connector) as calls:
            assert await calls("interrupt", {}) == (200, {})
        error = await job.error()
        assert "somebody else interrupted" in error.message
        assert error.retry
        assert not job.port.store.saved

    against_a_server(body)


def test_pictures_that_are_left_out_are_seen_though_another_task_has_begun_since() -> None:
    async def body(connector: A1111Connector) -> None:
        job = Job(connector, {**LONG, "n_iter": 2})
        await job.runs()
        async with others(connector) as calls:
            theirs = calls.begin(force_task_id=(name := f"task({random.getrandbits(40):x})"))
            await until(lambda: _is(connector, name, Standing.QUEUED))
            await calls("interrupt", {})
            assert "somebody else interrupted" in (await job.error()).message
            assert (await theirs)[0] == 200

    against_a_server(body, page=True)


async def _is(connector: A1111Connector, task: str, standing: Standing) -> bool:
    return (await connector.look(task)).standing is standing


# --- what a dead worker left -----------------------------------------------------------------------------------------


def successor(connector: A1111Connector) -> tuple[str, Context]:
    """The id of a call, and an attempt after its worker has died."""
    orphan = f"task(empd-orphan-{random.getrandbits(40):x})"
    handle = UpstreamHandle("a1111", orphan, 8, 1, False, {"url": connector.base_url})
    return orphan, attempt(SMALL, checkpoint=handle.encode())


@KINDS
def test_what_an_earlier_attempt_left_running_is_stopped(kind: type[A1111Connector]) -> None:
    async def body(connector: A1111Connector) -> None:
        async with others(connector) as calls:
            orphan, context = successor(connector)
            left = calls.begin(force_task_id=orphan, steps=20_000)
            await until(lambda: _works(connector))
            assert (await connector.process(context.job, context)).value["images"]
            assert "had arrived and was interrupted" in port_of(context).lines()[0]
            assert (await left)[0] == 200

    against_a_server(body, kind)


def test_what_an_earlier_attempt_left_waiting_is_waited_for() -> None:
    async def body(connector: A1111Connector) -> None:
        async with others(connector) as calls:
            theirs = calls.begin(steps=40)
            await until(lambda: _works(connector))
            orphan, context = successor(connector)
            left = calls.begin(force_task_id=orphan, steps=20_000)
            await until(lambda: _is(connector, orphan, Standing.QUEUED))
            assert (await connector.process(context.job, context)).value["images"]
            assert "had arrived and was interrupted" in port_of(context).lines()[0]
            assert len((await theirs)[1]["images"]) == 1
            assert (await left)[0] == 200

    against_a_server(body, page=True)


def test_one_whose_client_has_gone_goes_on_and_is_found() -> None:
    async def body(connector: A1111Connector) -> None:
        async with others(connector) as calls:
            orphan, context = successor(connector)
            left = calls.begin(force_task_id=orphan, steps=20_000)
            await until(lambda: _is(connector, orphan, Standing.RUNNING))
            left.cancel()
            await asyncio.wait((left,))
        assert await _is(connector, orphan, Standing.RUNNING)
        assert (await connector.process(context.job, context)).value["images"]
        assert await _is(connector, orphan, Standing.ENDED)

    against_a_server(body, page=True)


@pytest.mark.parametrize(
    ("route", "wrong", "stays", "said"),
    [
        ("txt2img", {"override_settings": {"nosuch": 1}}, Standing.ENDED, "has come to its end, unread"),
        ("img2img", {"init_images": ["bm8gcGljdHVyZQ=="]}, Standing.QUEUED, "may have arrived"),
    ],
)
def test_one_that_failed_is_not_waited_for_whatever_the_server_says_of_it(
    route: str, wrong: dict[str, Any], stays: Standing, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier, "IDLE_LOOKS", 3)

    async def body(connector: A1111Connector) -> None:
        async with others(connector) as calls:
            orphan, context = successor(connector)
            assert (await calls(route, {**SMALL, "force_task_id": orphan, **wrong}))[0] == 500
            assert await _is(connector, orphan, stays)
            assert (await connector.process(context.job, context)).value["images"]
            assert said in port_of(context).lines()[0]

    against_a_server(body, page=True)
