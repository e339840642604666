"""The ComfyUI connectors against a server: the double, or the one that COMFYUI_URL names (`make test-comfyui`).

Only what every ComfyUI has is used here: stock nodes that need no model.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from services_comfyui import Attempt, Graph, opened, picture, slow, until, with_output

from empd.cli.demo.png import Picture, decode, encode
from empd.connectors.failures import ConnectorError, InvalidInput
from empd.connectors.service.comfyui.connector import ComfyUIConnector
from tests.doubles.comfyui import ComfyUIDouble

URL = os.environ.get("COMFYUI_URL", "").rstrip("/")

Body = Callable[[ComfyUIConnector], Awaitable[None]]


@contextlib.asynccontextmanager
async def a_server() -> AsyncIterator[str]:
    """Its URL."""
    if URL:
        yield URL
        return
    async with ComfyUIDouble() as double:
        yield double.url


def against_a_server(body: Body, **config: Any) -> None:
    """Runs a test's body with a connector."""

    async def run() -> None:
        async with a_server() as url, opened(url, **config) as connector:
            await body(connector)

    asyncio.run(run())


def new_color() -> int:
    """Graphs of other tests must not be in the server's cache, even on one that lives on."""
    return random.randrange(1 << 24)


def is_inverted(data: bytes, color: int) -> bool:
    """Whether a PNG shows a colour's opposite. Pictures are floating-point numbers to ComfyUI: the last bit may go."""
    pixel = decode(data).rows[0][:3]
    return all(abs(255 - byte - made) <= 1 for byte, made in zip(color.to_bytes(3, "big"), pixel, strict=True))


def test_a_server_is_well_and_tells_of_itself() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        info = await connector.service_info()
        assert info["version"]
        assert info["vram_total_bytes"] > 0
        assert (info["queue_running"], info["queue_pending"]) == (0, 0)
        assert isinstance(await connector.models(), list)

    against_a_server(body)


def test_a_workflow_becomes_a_picture() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        color = new_color()
        job = Attempt(connector, {"workflow": picture(color)}, job_id=random.getrandbits(40))
        value = await job.value()
        (output,) = value["outputs"]
        assert (output["node"], output["node_type"], output["kind"]) == ("3", "SaveImage", "images")
        assert output["asset"].media_type == "image/png"
        (data,) = job.files
        made = decode(data)
        assert (made.width, made.height) == (8, 8)
        assert is_inverted(data, color)
        assert value["prompt_id"].startswith(job.context.instance)
        fractions = job.port.fractions
        assert fractions == sorted(fractions)
        assert len(set(fractions)) >= 3
        assert any("SaveImage (3), node" in message for message, _, _ in job.port.messages)

    against_a_server(body)


def test_a_workflow_that_ran_before_gives_the_same_picture_from_the_cache() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        graph = picture(new_color())
        first = Attempt(connector, graph, job_id=random.getrandbits(40))
        made = await first.value()
        again = Attempt(connector, graph, job_id=random.getrandbits(40))
        value = await again.value()
        assert value["cached_nodes"] == 3
        assert value["outputs"][0]["filename"] == made["outputs"][0]["filename"]
        assert again.files == first.files

    against_a_server(body)


def edited(change: Callable[[Graph], None]) -> Graph:
    """A graph with something wrong in it."""
    graph = picture()
    change(graph)
    return graph


def put(node: str, **inputs: Any) -> Callable[[Graph], None]:
    """Sets inputs of a node."""
    return lambda graph: graph[node]["inputs"].update(inputs)


def replace(node: str, class_type: str, **inputs: Any) -> Callable[[Graph], None]:
    """Another node in its place."""
    return lambda graph: graph.update({node: {"class_type": class_type, "inputs": inputs}})


REFUSED: list[tuple[Callable[[Graph], Any], list[str]]] = [
    (lambda graph: graph["2"]["inputs"].clear(), ["ImageInvert (2)", "input image", "required_input_missing"]),
    (put("1", width="wide"), ["EmptyImage (1)", "input width", "invalid_input_type"]),
    (put("1", width=10**9), ["EmptyImage (1)", "value_bigger_than_max"]),
    (put("1", width=-1), ["EmptyImage (1)", "value_smaller_than_min"]),
    (put("2", image=["1", 0, 0]), ["ImageInvert (2)", "bad_linked_input"]),
    (put("2", image=["9", 0]), ["exception_during_inner_validation", "'9'"]),
    (put("3", images=["9", 0]), ["SaveImage (3)", "exception_during_validation"]),
    (replace("1", "LoadImage", image="nowhere.png"), ["LoadImage (1)", "custom_validation_failed", "nowhere.png"]),
    (replace("1", "ImageInvert", image=["2", 0]), ["circle"]),
    (replace("2", "NoSuchNode"), ["NoSuchNode (2)", "does not exist"]),
    (lambda graph: graph.pop("3"), ["Prompt has no outputs"]),
    (
        lambda graph: graph.update(
            {
                "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "absent.safetensors"}},
                "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
            }
        ),
        ["CheckpointLoaderSimple (2)", "input ckpt_name", "value_not_in_list", "absent.safetensors"],
    ),
    (
        lambda graph: graph.update({"2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": 1}}}),
        ["SaveImage (3)", "input images", "return_type_mismatch"],
    ),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words[-1] for _, words in REFUSED])
def test_what_the_server_refuses_is_invalid_input_and_names_the_node(
    change: Callable[[Graph], Any], words: list[str]
) -> None:
    async def body(connector: ComfyUIConnector) -> None:
        with pytest.raises(InvalidInput) as caught:
            await Attempt(connector, edited(change)).value()
        for word in words:
            assert word in caught.value.message
        assert not caught.value.retry

    against_a_server(body)


def test_what_validation_lets_pass_fails_with_the_node_named() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        graph = picture(new_color())
        graph["2"]["inputs"]["image"] = "no link"
        job = Attempt(connector, graph, job_id=random.getrandbits(40))
        with pytest.raises(ConnectorError) as caught:
            await job.value()
        assert "ImageInvert (2)" in caught.value.message
        assert caught.value.failure == "invalid_input" or "AttributeError" in caught.value.evidence
        assert caught.value.evidence
        assert job.context.upstream.handle.ended

    against_a_server(body)


def half_wrong() -> Graph:
    """One output that can be made, one that cannot."""
    graph = picture(new_color())
    graph["5"] = {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "x"}}
    graph["7"] = {"class_type": "ImageInvert", "inputs": {}}
    return graph


def test_outputs_that_cannot_be_made_fail_the_job_unless_it_takes_what_it_can_get() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        with pytest.raises(InvalidInput, match=r"ImageInvert \(7\)"):
            await Attempt(connector, half_wrong(), job_id=random.getrandbits(40)).value()
        job = Attempt(
            connector, {"workflow": half_wrong(), "allow_partial": True}, job_id=random.getrandbits(40), epoch=1 << 33
        )
        value = await job.value()
        assert [output["node"] for output in value["outputs"]] == ["3"]
        assert list(value["node_errors"]) == ["7"]

    against_a_server(body)


@pytest.mark.parametrize(
    ("class_type", "inputs", "kind", "media_type"),
    [
        ("SaveImage", {"filename_prefix": "empd/deep/down/test"}, "images", "image/png"),
        ("PreviewImage", {}, "images", "image/png"),
        ("SaveImageWebsocket", {}, "images", "image/png"),
        (
            "SaveAnimatedWEBP",
            {"filename_prefix": "test", "fps": 6.0, "lossless": False, "quality": 80, "method": "default"},
            "images",
            "image/webp",
        ),
    ],
)
def test_every_kind_of_picture_is_fetched(class_type: str, inputs: dict[str, Any], kind: str, media_type: str) -> None:
    async def body(connector: ComfyUIConnector) -> None:
        graph = with_output(class_type, new_color(), **inputs)
        job = Attempt(connector, graph, job_id=random.getrandbits(40))
        value = await job.value()
        (output,) = value["outputs"]
        assert (output["node"], output["kind"]) == ("4", kind)
        assert output["asset"].media_type == media_type
        assert job.files[0]

    against_a_server(body)


def test_texts_are_part_of_the_result() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        graph = picture(new_color())
        graph["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
        value = await Attempt(connector, graph, job_id=random.getrandbits(40)).value()
        (text,) = value["texts"]
        assert text["node"] == "4"
        assert isinstance(text["text"], str)
        assert text["text"]

    against_a_server(body)


def test_only_the_outputs_that_are_wanted_are_saved() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        graph = picture(new_color())
        graph["3"]["_meta"] = {"title": "Final image"}
        graph["6"] = copy.deepcopy(graph["3"]) | {"_meta": {"title": "Other"}}
        graph["6"]["inputs"]["images"] = ["1", 0]
        job = Attempt(connector, {"workflow": graph, "outputs": ["Final image"]}, job_id=random.getrandbits(40))
        value = await job.value()
        assert [output["title"] for output in value["outputs"]] == ["Final image (3)"]

    against_a_server(body)


def test_input_files_are_uploaded_and_used() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        color = new_color()
        data = encode(Picture(8, 8, 3, [color.to_bytes(3, "big") * 8] * 8))
        graph = picture()
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "mine.png"}}
        for content in (base64.b64encode(data).decode(), data):
            job = Attempt(connector, {"workflow": graph, "files": {"mine.png": content}}, job_id=random.getrandbits(40))
            await job.value()
            assert is_inverted(job.files[0], color)

    against_a_server(body)


def test_a_running_job_is_stopped_and_its_neighbour_is_not() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        base = random.getrandbits(40)
        running = Attempt(connector, slow(100, color=new_color()), job_id=base)
        await until(lambda: len(set(running.port.fractions)) > 1, "the job to run")
        waiting = Attempt(connector, picture(new_color()), job_id=base + 1)
        server = connector.server()
        while not (await server.queue()).pending:
            await asyncio.sleep(0.01)
        await running.stop("cancelled")
        with pytest.raises(ConnectorError):
            await running.value()
        assert running.context.fraction < 0.9
        value = await waiting.value()
        assert value["outputs"]
        # Nothing of the stopped job is left, and stopping it again reaches nobody.
        assert await server.queue() == ([], [])
        await running.stop("cancelled")

    against_a_server(body)


def test_a_waiting_job_is_taken_out_of_the_queue() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        base = random.getrandbits(40)
        running = Attempt(connector, slow(40, color=new_color()), job_id=base)
        await until(lambda: running.port.fractions, "the job to run")
        waiting = Attempt(connector, slow(40, color=new_color()), job_id=base + 1)
        server = connector.server()
        while not (await server.queue()).pending:
            await asyncio.sleep(0.01)
        await waiting.stop("cancelled")
        with pytest.raises(ConnectorError):
            await waiting.value()
        assert waiting.context.fraction == 0.0
        assert (await running.value())["outputs"]

    against_a_server(body)


def test_the_next_attempt_takes_up_what_the_last_one_has_left() -> None:
    async def body(connector: ComfyUIConnector) -> None:
        job_id = random.getrandbits(40)
        graph = slow(12, color=new_color())
        first = Attempt(connector, graph, job_id=job_id)
        await until(lambda: len(set(first.port.fractions)) > 1, "the job to run")
        await first.stop("drain")
        with pytest.raises(ConnectorError, match="left at ComfyUI"):
            await first.value()
        checkpoint = first.port.checkpoints[-1]
        second = Attempt(connector, graph, job_id=job_id, epoch=(1 << 32) + 5, attempt=2, checkpoint=checkpoint)
        value = await second.value()
        assert value["adopted"]
        assert value["prompt_id"] == f"{first.context.instance}-{value['prompt_id'].split('-')[1]}-{1 << 32:x}"
        assert len(second.files) == 1
        # Once more, when it is over: the files are fetched again, nothing runs.
        third = Attempt(connector, graph, job_id=job_id, epoch=(1 << 32) + 6, attempt=3, checkpoint=checkpoint)
        assert (await third.value())["prompt_id"] == value["prompt_id"]
        assert third.files == second.files

    against_a_server(body)
