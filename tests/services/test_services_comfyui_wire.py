"""What ComfyUI says on the wire: the same of the double and of the real server that COMFYUI_URL names, so that the
double is known to be true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from services_comfyui import Graph, picture, slow, with_output

from empd.cli.demo.png import Picture, encode
from tests.doubles.comfyui import ComfyUIDouble

URL = os.environ.get("COMFYUI_URL", "").rstrip("/")
SILENCE_S = 10.0


@contextlib.asynccontextmanager
async def a_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session at the server."""
    if URL:
        async with aiohttp.ClientSession(URL) as session:
            yield session
        return
    async with ComfyUIDouble() as double, aiohttp.ClientSession(double.url) as session:
        yield session


def on_the_wire(body: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Runs a test's body with a session."""

    async def run() -> None:
        async with a_session() as session:
            await body(session)

    asyncio.run(run())


async def post(session: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    """Status, and the answer's JSON where it is JSON."""
    async with session.post(path, json=body) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if answer.content_type == "application/json" else text


async def get(session: aiohttp.ClientSession, path: str, **params: Any) -> Any:
    """An answer's JSON."""
    async with session.get(path, params=params) as answer:
        assert answer.status == 200
        return await answer.json()


def fresh(graph: Graph) -> Graph:
    """The same, and in no cache."""
    graph["1"]["inputs"]["color"] = random.randrange(1 << 24)
    return graph


class Heard:
    """All messages about one prompt, until the one that ends it."""

    def __init__(self, frames: list[Any]) -> None:
        self.messages = [frame for frame in frames if isinstance(frame, dict)]
        self.binary = [frame for frame in frames if isinstance(frame, bytes)]

    @property
    def kinds(self) -> list[str]:
        """Their types in order; queue changes and progress left out, as they may come in any number."""
        left_out = ("status", "progress", "progress_state", "feature_flags")
        return [message["type"] for message in self.messages if message["type"] not in left_out]

    def last(self, kind: str) -> dict[str, Any]:
        """The data of the last message of a type."""
        return next(message["data"] for message in reversed(self.messages) if message["type"] == kind)


async def run(session: aiohttp.ClientSession, graph: Graph, *, flags: bool = True, after: Any = None) -> Heard:
    """Runs a prompt; `after(prompt_id)` is awaited when its first node runs."""
    prompt_id = f"wire-{uuid.uuid4().hex}"
    frames: list[Any] = []
    async with session.ws_connect(f"/ws?clientId={prompt_id}") as socket:
        if flags:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        status, answer = await post(
            session, "/prompt", {"prompt": graph, "prompt_id": prompt_id, "client_id": prompt_id}
        )
        assert (status, answer["prompt_id"]) == (200, prompt_id)
        while True:
            frame = await socket.receive(timeout=SILENCE_S)
            if frame.type is aiohttp.WSMsgType.BINARY:
                frames.append(frame.data)
                continue
            message = json.loads(frame.data)
            frames.append(message)
            if message["type"] == "executing" and message["data"]["node"] is None:
                return Heard(frames)
            if message["type"] == "executing" and after is not None:
                await after(prompt_id)
                after = None


NODES = ["executing", "executing", "executing", "executed"]


def test_a_prompt_is_told_of_in_this_order() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        heard = await run(session, fresh(picture()))
        assert heard.messages[0]["type"] == "status"
        assert "sid" in heard.messages[0]["data"]
        assert heard.kinds == ["execution_start", "execution_cached", *NODES, "execution_success", "executing"]
        (file,) = heard.last("executed")["output"]["images"]
        assert set(file) == {"filename", "subfolder", "type"}
        states = heard.last("progress_state")["nodes"]
        assert {state["state"] for state in states.values()} == {"finished"}
        keys = {"value", "max", "state", "node_id", "prompt_id", "display_node_id", "parent_node_id", "real_node_id"}
        assert all(set(state) == keys for state in states.values())
        assert heard.last("feature_flags")["supports_preview_metadata"] is True

    on_the_wire(body)


def test_a_cached_prompt_names_the_files_of_then() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        graph = fresh(picture())
        first = await run(session, graph)
        again = await run(session, graph)
        assert again.kinds == ["execution_start", "execution_cached", "executed", "execution_success", "executing"]
        assert sorted(again.last("execution_cached")["nodes"]) == ["1", "2", "3"]
        assert again.last("executed")["output"] == first.last("executed")["output"]

    on_the_wire(body)


def test_history_has_it_when_the_last_message_is_there() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        for _ in range(5):
            heard = await run(session, fresh(picture()))
            prompt_id = heard.last("execution_success")["prompt_id"]
            entry = (await get(session, f"/history/{prompt_id}"))[prompt_id]
            assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("success", True)
            assert [kind for kind, _ in entry["status"]["messages"]][-1] == "execution_success"
            assert list(entry["outputs"]) == ["3"]
        assert await get(session, "/history/nobody") == {}
        await post(session, "/history", {"delete": [prompt_id]})
        assert await get(session, f"/history/{prompt_id}") == {}

    on_the_wire(body)


def test_a_node_that_raises() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        graph = fresh(picture())
        graph["2"]["inputs"]["image"] = "no link"
        heard = await run(session, graph)
        assert heard.kinds[-3:] == ["executing", "execution_error", "executing"]
        error = heard.last("execution_error")
        assert (error["node_id"], error["node_type"]) == ("2", "ImageInvert")
        assert error["exception_type"]
        assert error["exception_message"].endswith("\n")
        assert isinstance(error["traceback"], list)
        entry = (await get(session, f"/history/{error['prompt_id']}"))[error["prompt_id"]]
        assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
        assert entry["status"]["messages"][-1][0] == "execution_error"

    on_the_wire(body)


def test_an_interrupt_hits_the_prompt_that_it_names() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        async def interrupt(prompt_id: str) -> None:
            assert (await post(session, "/interrupt", {"prompt_id": "nobody"}))[0] == 200
            assert (await get(session, "/queue"))["queue_running"][0][1] == prompt_id
            assert (await post(session, "/interrupt", {"prompt_id": prompt_id}))[0] == 200

        heard = await run(session, fresh(slow(100)), after=interrupt)
        assert "execution_success" not in heard.kinds
        prompt_id = heard.last("execution_interrupted")["prompt_id"]
        entry = (await get(session, f"/history/{prompt_id}"))[prompt_id]
        assert entry["status"]["messages"][-1][0] == "execution_interrupted"

    on_the_wire(body)


def test_a_waiting_prompt_is_deleted_without_a_trace() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        async def wait_behind(prompt_id: str) -> None:
            ids = [f"wire-{uuid.uuid4().hex}" for _ in range(3)]
            for number, waiting in enumerate(ids):
                await post(session, "/prompt", {"prompt": fresh(picture()), "prompt_id": waiting, "number": -number})
            queue = await get(session, "/queue")
            assert [item[1] for item in queue["queue_running"]] == [prompt_id]
            pending = sorted(queue["queue_pending"], key=lambda item: item[0])
            assert [item[1] for item in pending] == ids[::-1]
            assert (await get(session, "/prompt"))["exec_info"]["queue_remaining"] == 4
            assert (await post(session, "/queue", {"delete": [*ids, prompt_id, "nobody"]}))[0] == 200
            assert (await get(session, "/queue"))["queue_pending"] == []
            assert [await get(session, f"/history/{waiting}") for waiting in ids] == [{}, {}, {}]
            await post(session, "/interrupt", {"prompt_id": prompt_id})

        heard = await run(session, fresh(slow(100)), after=wait_behind)
        assert heard.kinds[-2:] == ["execution_interrupted", "executing"]

    on_the_wire(body)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 400, "no_prompt"),
        ({"prompt": {}}, 400, "prompt_no_outputs"),
        ({"prompt": {"1": {"inputs": {}}}}, 400, "invalid_prompt"),
        ({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, 400, "invalid_prompt"),
        ({"prompt": {"1": {"class_type": "SaveImage", "inputs": {}}}}, 400, "prompt_outputs_failed_validation"),
        ({"prompt": 7}, 500, ""),
    ],
)
def test_refusals(body: Any, status: int, kind: str) -> None:
    async def ask(session: aiohttp.ClientSession) -> None:
        found, answer = await post(session, "/prompt", body)
        assert found == status
        if kind:
            assert set(answer) == {"error", "node_errors"}
            assert set(answer["error"]) == {"type", "message", "details", "extra_info"}
            assert answer["error"]["type"] == kind

    on_the_wire(ask)


def test_half_a_prompt_is_taken_with_its_errors() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        graph = fresh(picture())
        graph["5"] = {"class_type": "SaveImage", "inputs": {}}
        prompt_id = uuid.uuid4().hex
        status, answer = await post(session, "/prompt", {"prompt": graph, "prompt_id": prompt_id})
        assert status == 200
        assert answer["node_errors"]["5"]["class_type"] == "SaveImage"
        assert answer["node_errors"]["5"]["dependent_outputs"] == ["5"]
        while prompt_id not in (found := await get(session, f"/history/{prompt_id}")):
            await asyncio.sleep(0.01)
        assert list(found[prompt_id]["outputs"]) == ["3"]

    on_the_wire(body)


@pytest.mark.parametrize(("flags", "kind"), [(True, 4), (False, 1)])
def test_final_images_over_the_socket(flags: bool, kind: int) -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        heard = await run(session, fresh(with_output("SaveImageWebsocket")), flags=flags)
        (frame,) = heard.binary
        assert int.from_bytes(frame[:4], "big") == kind
        if kind == 4:
            size = int.from_bytes(frame[4:8], "big")
            about = json.loads(frame[8 : 8 + size])
            assert (about["node_id"], about["image_type"]) == ("4", "image/png")
            assert frame[8 + size :].startswith(b"\x89PNG")
        else:
            assert int.from_bytes(frame[4:8], "big") == 2
            assert frame[8:].startswith(b"\x89PNG")
        prompt_id = heard.last("execution_success")["prompt_id"]
        assert (await get(session, f"/history/{prompt_id}"))[prompt_id]["outputs"] == {}

    on_the_wire(body)


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({}, 404),
        ({"filename": "nobody.png"}, 404),
        ({"filename": "../main.py"}, 400),
        ({"filename": "/etc/passwd"}, 400),
        ({"filename": "x.png", "type": "secret"}, 400),
        ({"filename": "x.png", "subfolder": "../.."}, 403),
    ],
)
def test_files_that_are_not_given(params: dict[str, str], status: int) -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        async with session.get("/view", params=params) as answer:
            assert answer.status == status

    on_the_wire(body)


def test_uploads_keep_what_is_there() -> None:
    name = f"wire-{uuid.uuid4().hex[:8]}.png"

    async def body(session: aiohttp.ClientSession) -> None:
        async def upload(color: int, **more: str) -> Any:
            form = aiohttp.FormData({"subfolder": "wire", **more})
            data = encode(Picture(1, 1, 3, [bytes((color,) * 3)]))
            form.add_field("image", data, filename=name)
            async with session.post("/upload/image", data=form) as answer:
                return answer.status, await answer.json() if answer.status == 200 else None

        assert await upload(1) == (200, {"name": name, "subfolder": "wire", "type": "input"})
        assert (await upload(1))[1]["name"] == name
        assert (await upload(2))[1]["name"] == name.replace(".png", " (1).png")
        assert (await upload(3, overwrite="true"))[1]["name"] == name
        assert (await upload(1, subfolder="../../.."))[0] == 400

    on_the_wire(body)


def test_what_a_server_tells_of_itself() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        stats = await get(session, "/system_stats")
        assert {"os", "ram_total", "ram_free", "comfyui_version", "pytorch_version"} <= set(stats["system"])
        assert {"name", "type", "index", "vram_total", "vram_free"} <= set(stats["devices"][0])
        entry = (await get(session, "/object_info/EmptyImage"))["EmptyImage"]
        assert entry["input"]["required"]["width"][0] == "INT"
        assert entry["output"] == ["IMAGE"]
        assert (await get(session, "/object_info/SaveImage"))["SaveImage"]["output_node"] is True
        assert await get(session, "/object_info/NoSuchNode") == {}
        assert (await get(session, "/api/features"))["supports_preview_metadata"] is True
        assert (await post(session, "/free", {"unload_models": True}))[0] == 200

    on_the_wire(body)


def test_another_origin_is_refused() -> None:
    async def body(session: aiohttp.ClientSession) -> None:
        async with session.get("/queue", headers={"Origin": "http://elsewhere.example"}) as answer:
            assert (answer.status, await answer.text()) == (403, "")

    on_the_wire(body)
