"""The Automatic1111 connectors against a double of its server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from services_world import context_of, port_of, texts_in

from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError, InvalidInput, NotFound
from empd.connectors.logger import ConnectorLogger
from empd.connectors.service.a1111.batch import A1111BatchConnector
from empd.connectors.service.a1111.cloud import A1111CloudConnector
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.live import A1111WebSocketConnector
from empd.connectors.service.a1111.local import A1111LocalConnector
from empd.connectors.service.a1111.request import LISTS, read_request
from empd.connectors.service.a1111.rest import A1111RestConnector
from empd.errors import FailureClass
from empd.job import Cause
from tests.doubles.a1111 import MODELS, A1111Double, Failure, picture

PNG = base64.b64decode(picture(1))
FAST = {"poll_interval_s": 0.01, "retry": {"attempts_max": 2, "base_s": 0.001}}
WAIT_S = 30.0
Body = Callable[[A1111Double, Any], Awaitable[None]]


def against(
    body: Body, kind: type[A1111Connector] = A1111RestConnector, config: Any = None, records: Any = None, **double: Any
) -> None:
    """Runs a test's body with a double and an opened connector to it."""

    async def run() -> None:
        async with A1111Double(**double) as server, asyncio.timeout(2 * WAIT_S):
            site = Site(
                service="s", **({"logger": ConnectorLogger.to(records.append, "debug")} if records is not None else {})
            )
            connector = registry.build(kind, {"base_url": server.url, **FAST, **(config or {})}, site)
            assert await connector.start(), connector.reason
            try:
                await body(server, connector)
            finally:
                server.gate.set()
                await connector.stop()

    asyncio.run(run())


def with_(change: Callable[[A1111Double], None], body: Body) -> Body:
    """The body, with a double that was changed before."""

    async def changed(server: A1111Double, connector: Any) -> None:
        change(server)
        await body(server, connector)

    return changed


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


async def do(connector: A1111Connector, payload: Any, context: Context | None = None) -> Any:
    context = context or context_of(payload)
    return await connector.process(context.job, context)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_picture_that_is_saved_and_logged() -> None:
    records: list[Any] = []

    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context = context_of({"prompt": "a cat", "seed": 7, "steps": 3})
        result = await do(connector, None, context)
        (image,) = result.value["images"]
        assert (image["kind"], image["seed"], image["asset"].media_type) == ("image", 7, "image/png")
        assert image["infotext"].endswith("Seed: 7")
        assert port_of(context).store.saved == {0: base64.b64decode(picture(7))}
        assert (result.value["steps"], result.value["sampler_name"]) == (3, "Euler a")
        assert result.usage == {"images": 1.0}
        assert max(map(len, texts_in(result.value))) < 100  # no picture in it
        (sent,) = server.bodies
        assert (sent["width"], sent["height"], sent["cfg_scale"], sent["sampler_name"]) == (512, 512, 7, "Euler a")
        assert sent["force_task_id"].startswith("task(empd-")

    against(body, records=records)
    (record,) = [record for record in records if record["event"] == "service_generated"]
    assert record["schema"] == "a1111"
    expected = {
        "sampler": "Euler a",
        "steps": 3,
        "cfg_scale": 7.0,
        "seed": 7,
        "model_checkpoint": "dream",
        "width": 512,
    }
    expected |= {"height": 512, "batch_size": 1}
    assert {name: record[name] for name in expected} == expected
    assert "vae" not in record  # the server has none beside the model's own


def test_of_a_batch_the_grid_is_left_out_unless_asked_for() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        batch = {"prompt": "x", "seed": 5, "batch_size": 2, "n_iter": 2, "steps": 1}
        images = (await do(connector, batch)).value["images"]
        assert [(image["kind"], image["seed"]) for image in images] == [("image", seed) for seed in (5, 6, 7, 8)]
        assert [image["infotext"][-1] for image in images] == ["5", "6", "7", "8"]
        images = (await do(connector, {**batch, "grid": True})).value["images"]
        assert [image["kind"] for image in images] == ["grid", *["image"] * 4]

    against(body)


def test_a_picture_is_changed() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        await do(connector, {"init_images": [PNG], "mask": PNG, "steps": 1, "denoising_strength": 0.3})
        (sent,) = server.bodies
        assert base64.b64decode(sent["init_images"][0]) == base64.b64decode(sent["mask"]) == PNG

    against(body)


def test_loras_controlnet_and_scripts_reach_the_server_as_it_wants_them() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        payload = {
            "prompt": "a cat", "steps": 1, "loras": {"ink": 0.8, "wash": 1}, "vae": "fine.vae.pt",
            "controlnet": [{"module": "canny", "image": PNG}],
            "alwayson_scripts": {"ADetailer": {"args": [True]}}, "script_name": "X/Y/Z plot", "script_args": [1],
        }  # fmt: skip
        value = (await do(connector, payload)).value
        assert [image["kind"] for image in value["images"]] == ["image", "extra"]
        (sent,) = server.bodies
        assert sent["prompt"] == "a cat <lora:ink:0.8> <lora:wash:1>"
        assert sent["override_settings"]["sd_vae"] == "fine.vae.pt"
        assert set(sent["alwayson_scripts"]) == {"ADetailer", "ControlNet"}
        (unit,) = sent["alwayson_scripts"]["ControlNet"]["args"]
        assert base64.b64decode(unit["image"]) == PNG
        assert (sent["script_name"], sent["script_args"]) == ("X/Y/Z plot", [1])

    against(body)


def test_a_model_is_loaded_within_the_call_and_told_as_loaded() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        assert "dream" in await connector.models()
        for name in ("paint", "9876543210", "PAINT", MODELS[1]["title"]):
            assert (await do(connector, {"model": name, "steps": 1})).value["sd_model_name"] == "paint"
            assert set(await connector.models()) == {MODELS[1]["title"], "paint", "9876543210"}
        override = {"sd_model_checkpoint": "paint"}
        assert (await do(connector, {"override_settings": override, "steps": 1})).value["sd_model_name"] == "paint"
        assert server.options["sd_model_checkpoint"] == MODELS[0]["title"]

    against(body)


def test_nothing_of_a_job_is_left_in_the_servers_settings() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        before = dict(server.options)
        override = {"CLIP_stop_at_last_layers": 2}
        await do(connector, {"model": "paint", "vae": "fine.vae.pt", "override_settings": override, "steps": 1})
        assert server.bodies[0]["override_settings"]["sd_vae"] == "fine.vae.pt"
        assert (await do(connector, {"steps": 1})).value["sd_model_name"] == "dream"
        assert server.options == before

    against(body)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"sampler_name": "euler A"}, {"sampler_name": "Euler a"}),
        ({"sampler_name": "k_euler"}, {"sampler_name": "Euler"}),
        ({"sampler_index": "Euler"}, {"sampler_name": "Euler"}),
        ({"sampler_name": "DPM++ 2M karras"}, {"sampler_name": "DPM++ 2M Karras"}),
        ({"scheduler": "karras", "hr_scheduler": "AUTOMATIC"}, {"scheduler": "Karras", "hr_scheduler": "Automatic"}),
        ({"hr_sampler_name": "euler"}, {"hr_sampler_name": "Euler"}),
        ({"vae": "Fine.vae.pt"}, {"override_settings": {"sd_vae": "fine.vae.pt"}}),
        ({"vae": "None"}, {"override_settings": {"sd_vae": "None"}}),
        ({"loras": ["Water colours"]}, {"prompt": "<lora:Water colours:1>"}),
    ],
)
def test_names_become_those_of_the_server(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        await do(connector, {"steps": 1, **asked})
        assert {key: server.bodies[0][key] for key in sent} == sent

    against(body)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"sampler_name": "Nobody"}, "no sampler 'Nobody'; it has: DPM\\+\\+ 2M, Euler a, Euler"),
        ({"sampler_name": "Nobody Karras"}, "no sampler 'Nobody Karras'"),
        ({"scheduler": "nobody"}, "no scheduler 'nobody'; it has: Automatic, Karras"),
        ({"model": "missing"}, "no model 'missing'; it has: dream.safetensors"),
        ({"override_settings": {"sd_model_checkpoint": "missing"}}, "no model 'missing'"),
        ({"vae": "missing"}, "no VAE 'missing'; it has: fine.vae.pt"),
        ({"loras": {"missing": 0.5}}, "no LoRA 'missing'; it has: ink, wash"),
    ],
)
def test_what_the_server_would_replace_without_a_word_is_not_asked_for(asked: dict[str, Any], problem: str) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        with pytest.raises(NotFound, match=problem):
            await do(connector, {"steps": 1, **asked})
        assert not server.bodies

    against(body)


def test_lists_that_a_server_does_not_have_forbid_nothing() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.lacking = {"schedulers", "loras"}
        await do(connector, {"steps": 1, "scheduler": "karras", "loras": ["anything"], "sampler_name": "euler"})
        assert (server.bodies[0]["scheduler"], server.bodies[0]["sampler_name"]) == ("karras", "Euler")

    against(body)


# --- the other operations --------------------------------------------------------------------------------------------


def test_extras_interrogation_and_infotexts() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        one = await do(connector, {"operation": "extras", "image": PNG, "upscaler_1": "None", "upscaling_resize": 4})
        assert len(one.value["images"]) == 1
        assert server.bodies[-1]["upscaling_resize"] == 4
        two = await do(connector, {"operation": "extras", "images": [PNG, PNG]})
        assert len(two.value["images"]) == 2
        assert await do(connector, {"operation": "interrogate", "image": PNG}) == {"caption": "a small square"}
        assert (await do(connector, {"operation": "png_info", "image": PNG}))["parameters"] == {"Steps": "20"}
        server.captions = False
        with pytest.raises(ConnectorError, match="could not look at the picture"):
            await do(connector, {"operation": "interrogate", "image": PNG})

    against(body)


def test_what_there_is_can_be_asked_for_and_settings_set() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        for operation in LISTS:
            assert await do(connector, {"operation": operation}) is not None, operation
        assert await do(connector, {"operation": "flags"}) == {"api": True}
        await do(connector, {"operation": "set_options", "options": {"sd_vae": "fine.vae.pt"}})
        assert (await do(connector, {"operation": "options"}))["sd_vae"] == "fine.vae.pt"
        await do(connector, {"operation": "unload_checkpoint"})
        assert server.unloads == 1
        info = await connector.service_info()
        assert (info["model"], info["vram_free_bytes"], info["running"]) == (MODELS[0]["title"], 3 << 30, None)

    credentials = {"type": "basic", "username": "user", "password": "secret"}
    against(body, config={"auth": credentials}, auth="secret")


@pytest.mark.parametrize(
    ("config", "unloads"), [({}, 0), ({"unload_after_job": True}, 1), ({"vram_free_bytes_min": 4 << 30}, 1)]
)
def test_memory_is_let_go_between_jobs(config: dict[str, Any], unloads: int) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        await do(connector, {"steps": 1})
        assert server.unloads == unloads

    against(body, config=config)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ([], "not an object"),
        ({"operation": "paint"}, "operation: 'paint' is not known"),
        ({"operation": "img2img"}, "init_images: missing"),
        ({"init_images": [3]}, r"init_images\[0\]: not a picture"),
        ({"steps": 0}, "steps: 0 is not a whole number"),
        ({"width": "wide"}, "width: 'wide'"),
        ({"prompt": 3}, "prompt: not a text"),
        ({"loras": {"ink": "much"}}, "loras: accepted"),
        ({"controlnet": {}, "prompt": ""}, None),
        ({"controlnet": [3]}, "controlnet: accepted"),
        ({"operation": "extras", "images": []}, "images: not a list"),
        ({"operation": "set_options"}, "options: missing"),
    ],
)
def test_a_payload_that_cannot_be_is_told_by_its_key(payload: Any, problem: str | None) -> None:
    if problem is None:
        assert "ControlNet" not in read_request(payload).body.get("alwayson_scripts", {})
        return
    with pytest.raises(InvalidInput, match=problem):
        read_request(payload)


# --- progress and interrupts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.parametrize("kind", [A1111RestConnector, A1111WebSocketConnector])
def test_progress_rises_and_previews_are_shown(kind: type[A1111Connector], page: bool) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context = context_of({"steps": 20, "enable_hr": True})
        port = port_of(context)
        running = asyncio.create_task(do(connector, None, context))
        await until(lambda: server.step > 5)
        server.gate.clear()
        await until(lambda: port.partials() and max(port.fractions()) > 0.1)
        server.gate.set()
        await running
        fractions = port.fractions()
        assert fractions == sorted(fractions)
        assert {partial["kind"] for partial in port.partials()} == {"preview"}

    against(body, kind, {"exclusive": not page}, page=page)


@pytest.mark.parametrize("kind", [A1111RestConnector, A1111WebSocketConnector])
def test_cancel_interrupts_the_jobs_own_task(kind: type[A1111Connector]) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context, running, stopping = await _cancelled(server, connector, eta_s=60.0)
        await until(lambda: server.interrupts)
        server.gate.set()
        await stopping
        with pytest.raises(ConnectorError) as caught:
            await running
        assert caught.value.failure is FailureClass.CANCELLED
        assert server.interrupts == server.started
        assert not port_of(context).store.saved

    against(body, kind)


def test_a_task_about_to_end_is_left_to_end() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        _, running, stopping = await _cancelled(server, connector, eta_s=0.5)
        looks = server.looks
        await until(lambda: server.looks > looks + 4)
        server.gate.set()
        await stopping
        with pytest.raises(ConnectorError) as caught:
            await running
        assert caught.value.failure is FailureClass.CANCELLED
        assert server.interrupts == []

    against(body)


async def _cancelled(server: A1111Double, connector: A1111Connector, eta_s: float) -> tuple[Context, Any, Any]:
    """A job that stands at a step and has been told to stop."""
    server.eta_s = eta_s
    context = context_of({"steps": 50})
    running = asyncio.create_task(do(connector, None, context))
    await until(lambda: server.step > 2)
    server.gate.clear()
    context.mark_stopping("cancelled")
    return context, running, asyncio.create_task(connector.cancel(context.job, context))


@pytest.mark.parametrize("kind", [A1111RestConnector, A1111WebSocketConnector])
def test_cancel_never_hits_a_neighbour(kind: type[A1111Connector]) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.eta_s = 60.0
        async with aiohttp.ClientSession() as session:
            server.gate.clear()
            theirs = {"force_task_id": "task(theirs)", "steps": 3}
            neighbour = asyncio.create_task(_post(session, f"{server.url}/sdapi/v1/txt2img", theirs))
            await until(lambda: server.current == "task(theirs)")
            context = context_of({"steps": 100_000})
            running = asyncio.create_task(do(connector, None, context))
            await until(lambda: server.pending)
            context.mark_stopping("cancelled")
            stopping = asyncio.create_task(connector.cancel(context.job, context))
            looks = server.looks
            await until(lambda: server.looks > looks + 4)
            assert server.interrupts == []
            server.gate.set()
            assert len((await neighbour)["images"]) == 1
            await stopping
            with pytest.raises(ConnectorError):
                await running
            assert server.interrupts == [server.started[1]]

    against(body, kind)


def test_an_interrupt_by_somebody_else_is_no_result() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context = context_of({"steps": 50})
        running = asyncio.create_task(do(connector, None, context))
        await until(lambda: server.step > 2)
        server.gate.clear()
        async with aiohttp.ClientSession() as session:
            await _post(session, f"{server.url}/sdapi/v1/interrupt", {})
        server.gate.set()
        with pytest.raises(ConnectorError, match="somebody else interrupted") as caught:
            await running
        assert caught.value.retry
        assert not port_of(context).store.saved

    against(body)


def test_an_old_interrupt_does_not_count_for_what_has_no_task() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        async with aiohttp.ClientSession() as session:
            await _post(session, f"{server.url}/sdapi/v1/interrupt", {})
        assert (await do(connector, {"operation": "extras", "image": PNG})).value["images"]
        assert (await do(connector, {"steps": 1})).value["images"]

    against(body)


def test_an_interrupt_that_was_seen_is_no_result_though_another_task_has_begun_since() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        running = asyncio.create_task(do(connector, {"steps": 50}))
        await until(lambda: server.step > 2)
        server.gate.clear()
        await until(lambda: server.gate._waiters)
        async with aiohttp.ClientSession() as session:
            theirs = asyncio.create_task(_post(session, f"{server.url}/sdapi/v1/txt2img", {"steps": 50}))
            await until(lambda: server.pending)
            looks = server.looks
            await until(lambda: server.looks > looks + 2)
            await _post(session, f"{server.url}/sdapi/v1/interrupt", {})
            looks = server.looks
            await until(lambda: server.looks > looks + 2)
            server.gate.set()
            with pytest.raises(ConnectorError, match="somebody else interrupted"):
                await running
            await theirs

    against(body)


def test_of_two_jobs_at_a_server_that_is_theirs_alone_neither_is_taken_for_the_other() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.gate.clear()
        server.eta_s = 60.0
        first, second = (context_of({"steps": 3}, epoch=epoch) for epoch in (1, 2))
        second.job.id = 2
        jobs = [asyncio.create_task(do(connector, None, first))]
        await until(lambda: server.current)
        jobs.append(asyncio.create_task(do(connector, None, second)))
        await until(lambda: server.pending)
        second.mark_stopping("cancelled")
        stopping = asyncio.create_task(connector.cancel(second.job, second))
        looks = server.looks
        await until(lambda: server.looks > looks + 4)
        assert not server.interrupts
        server.gate.set()
        assert (await jobs[0]).value["images"]
        await asyncio.gather(stopping, jobs[1], return_exceptions=True)

    against(body, config={"exclusive": True}, page=False)


def test_an_interrupt_that_left_pictures_out_is_no_result_though_others_run_since() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context = context_of({"steps": 50, "n_iter": 3})
        running = asyncio.create_task(do(connector, None, context))
        await until(lambda: server.step > 2)
        server.gate.clear()
        async with aiohttp.ClientSession() as session:
            theirs = asyncio.create_task(_post(session, f"{server.url}/sdapi/v1/txt2img", {"steps": 50}))
            await until(lambda: server.pending)
            await _post(session, f"{server.url}/sdapi/v1/interrupt", {})
            server.gate.set()
            with pytest.raises(ConnectorError, match="somebody else interrupted"):
                await running
            await theirs

    against(body, config={"poll_interval_s": 30.0})


def test_without_its_page_a_server_is_not_interrupted_unless_it_is_the_jobs_alone() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        context, running, stopping = await _cancelled(server, connector, eta_s=60.0)
        if connector.config.exclusive:
            await until(lambda: server.interrupts)
        else:
            looks = server.looks
            await until(lambda: server.looks > looks + 4)
            assert not server.interrupts
            assert set(port_of(context).fractions()) <= {0.0}
        server.gate.set()
        await stopping
        with pytest.raises(ConnectorError) as caught:
            await running
        assert caught.value.failure is FailureClass.CANCELLED

    def unseen(server: A1111Double) -> None:
        server.takes_ids = False

    def guarded(server: A1111Double) -> None:
        server.guarded = True

    for exclusive in (False, True):
        for page, kind_of in ((False, lambda server: None), (True, unseen), (True, guarded)):
            against(with_(kind_of, body), config={"exclusive": exclusive}, page=page)


async def _post(session: aiohttp.ClientSession, url: str, body: Any) -> Any:
    async with session.post(url, json=body) as answer:
        return await answer.json()


def test_a_place_in_the_queue_is_told() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.gate.clear()
        first = context_of({"steps": 2})
        second = context_of({"steps": 1}, epoch=10)
        jobs = [asyncio.create_task(do(connector, None, first))]
        await until(lambda: server.current)
        second.job.id = 2
        jobs.append(asyncio.create_task(do(connector, None, second)))
        told = lambda: [said[2] for said in port_of(second).said if said[0] == "progress"]  # noqa: E731
        await until(lambda: "In queue: 1/1" in told())
        server.gate.set()
        await asyncio.gather(*jobs)

    against(body)


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES: list[tuple[Failure | None, dict[str, Any], FailureClass, bool, Cause]] = [
    (Failure("AssertionError", "prompt"), {}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (Failure("Exception", "no such upscaler"), {}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (None, {"override_settings": {"nosuch": 1}}, FailureClass.INTERNAL, True, Cause.JOB_FAULT),
    (None, {"script_name": "nobody"}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (None, {"alwayson_scripts": {"nobody": {}}}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (None, {"init_images": ["bm8gcGljdHVyZQ=="]}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (None, {"init_images": ["http://10.0.0.1/x.png"]}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (Failure("OutOfMemoryError", "CUDA out of memory"), {}, FailureClass.OUT_OF_MEMORY, True, Cause.JOB_FAULT),
    (Failure("MemoryError"), {}, FailureClass.OUT_OF_MEMORY, True, Cause.JOB_FAULT),
    (Failure("AcceleratorError", "device lost"), {}, FailureClass.GPU_LOST, True, Cause.GPU_FAULT),
    (Failure("NansException", "all NaNs"), {}, FailureClass.INTERNAL, True, Cause.JOB_FAULT),
    (Failure("TypeError", "unsupported operand"), {}, FailureClass.INTERNAL, True, Cause.JOB_FAULT),
    (Failure("FileNotFoundError", "lora"), {}, FailureClass.NOT_FOUND, False, Cause.JOB_FAULT),
    (Failure("UnidentifiedImageError", "?"), {}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (Failure("RuntimeError", "expected all tensors"), {}, FailureClass.UNAVAILABLE, True, Cause.JOB_FAULT),
    (Failure("", status=422, detail=[{"msg": "bad"}]), {}, FailureClass.INVALID_INPUT, False, Cause.JOB_FAULT),
    (Failure("", status=503, detail="busy"), {}, FailureClass.UNAVAILABLE, True, Cause.UPSTREAM),
]


@pytest.mark.parametrize(("failure", "payload", "expected", "retry", "cause"), FAILURES)
def test_each_failure_has_its_class(
    failure: Failure | None, payload: dict[str, Any], expected: FailureClass, retry: bool, cause: Cause
) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.failing = failure
        with pytest.raises(ConnectorError) as caught:
            await do(connector, {"prompt": "x", "steps": 1, **payload})
        error = caught.value
        assert (error.failure, error.retry, error.cause) == (expected, retry, cause)
        assert len(server.bodies) == 1  # the server may be at it: nothing is sent twice within an attempt
        assert "status" in error.evidence
        server.failing = None
        assert (await do(connector, {"steps": 1})).value["images"]  # a task that failed stays `current_task` until then

    against(body, config={"circuit": None})


def test_credentials_are_sent_and_missing_ones_told() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        assert (await do(connector, {"steps": 1})).value["images"]
        server.auth = "another"
        assert not await connector.probe()
        assert "Incorrect username or password" in connector.reason
        with pytest.raises(ConnectorError) as caught:
            await do(connector, {"steps": 1})
        assert caught.value.failure is FailureClass.AUTH

    credentials = {"type": "basic", "username": "user", "password": "secret"}
    against(body, A1111CloudConnector, {"auth": credentials}, auth="secret")


def test_a_server_without_its_api_is_unavailable() -> None:
    async def run() -> None:
        async with A1111Double() as server:
            config = {"base_url": f"{server.url}/elsewhere", **FAST}
            connector = registry.build(A1111LocalConnector, config, Site(service="s"))
            assert not await connector.start()
            assert "--api" in connector.reason
            await connector.stop()

    asyncio.run(run())


def test_a_local_one_has_the_port_of_its_gpu() -> None:
    assert A1111LocalConnector.default_base_port == 7860


def test_a_server_that_goes_under_a_job_is_asked_once_and_tells_no_result() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        server.gate.clear()
        running = asyncio.create_task(do(connector, {"steps": 5}))
        await until(lambda: server.current)
        await server.stop()
        with pytest.raises(ConnectorError) as caught:
            await running
        assert caught.value.failure is FailureClass.UNAVAILABLE
        assert caught.value.retry
        assert len(server.bodies) == 1

    against(body)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_makes_each_item_with_its_own_result() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        payload = {"shared": {"steps": 2, "prompt": "a"}, "items": [{"seed": 1}, {"seed": 2, "batch_size": 2}]}
        context = context_of(payload)
        result = await do(connector, None, context)
        assert (result.value["completed"], result.value["failed"]) == (2, 0)
        assert [image["seed"] for item in result.value["items"] for image in item["images"]] == [1, 2, 3]
        assert set(port_of(context).store.saved) == {0, 1000, 1001}
        assert result.usage == {"images": 3.0, "items": 2.0}
        fractions = port_of(context).fractions()
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert len(set(server.started)) == 2

    against(body, A1111BatchConnector)


def test_items_that_fail_are_tried_again_and_do_not_stop_the_others() -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        payload = {"shared": {"steps": 1}, "items": [{"sampler_name": "Nobody"}, {"seed": 3}], "item_retries": 2}
        result = await do(connector, payload)
        assert (result.value["completed"], result.value["failed"]) == (1, 1)
        assert result.value["items"][0]["error"]["failure"] == "not_found"
        with pytest.raises(ConnectorError, match="no sampler 'Nobody'"):
            await do(connector, {**payload, "on_failure": "fail"})
        server.failing = Failure("OutOfMemoryError")
        before = len(server.bodies)
        with pytest.raises(ConnectorError, match="all 1 items failed") as caught:
            await do(connector, {"items": [{"steps": 1}], "item_retries": 2})
        assert caught.value.failure is FailureClass.OUT_OF_MEMORY
        assert len(server.bodies) - before == 3

    against(body, A1111BatchConnector, {"circuit": None})


def test_what_is_done_of_a_batch_is_not_made_again() -> None:
    async def body(server: A1111Double, connector: A1111BatchConnector) -> None:
        payload = {"shared": {"steps": 1}, "items": [{"seed": seed} for seed in range(4)]}
        first = context_of(payload)
        await do(connector, None, first)
        checkpoints = port_of(first).checkpoints()
        assert len(checkpoints) == 8  # for each item what is about to be sent, and that it is done
        count = len(server.bodies)
        second = context_of(payload, checkpoint=checkpoints[3], epoch=10)
        result = await connector.resume(second.job, second)
        assert len(server.bodies) - count == 2
        assert [item["index"] for item in msgspec.to_builtins(result.value["items"])] == [0, 1, 2, 3]
        assert set(port_of(second).store.saved) == {2000, 3000}

    against(body, A1111BatchConnector)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"items": []}, "items: 0 of them"),
        ({"items": [{"steps": 0}]}, r"items\[0\]: steps"),
        ({"items": [{"operation": "models"}]}, r"items\[0\].operation: models makes no pictures"),
        ({"items": [{}], "on_failure": "cry"}, "on_failure"),
        ({"item": []}, "unknown field"),
    ],
)
def test_a_batch_that_cannot_be_is_told(payload: Any, problem: str) -> None:
    async def body(server: A1111Double, connector: A1111Connector) -> None:
        with pytest.raises(InvalidInput, match=problem):
            await do(connector, payload)

    against(body, A1111BatchConnector)
