"""The ComfyUI connectors against the double, where it behaves as real servers do: progress, outputs, failures."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from services_comfyui import (
    Attempt,
    against_the_double,
    failing,
    opened,
    picture,
    running,
    sleeping,
    until,
    with_output,
)

from empd.connectors.failures import BadResponse, ConnectorError, NotFound, OutOfMemory, ServiceUnavailable
from empd.connectors.service.comfyui import listener
from empd.connectors.service.comfyui.connector import ComfyUIConnector
from empd.job import Cause
from tests.doubles.comfyui import ComfyUIDouble

# --- progress and previews -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_progress_goes_by_steps_and_nodes_and_never_falls(legacy: bool) -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.2, steps=8))
        await job.value()
        assert job.port.fractions == sorted(job.port.fractions)
        assert job.port.fractions[-1] <= 1.0
        assert {(step, steps) for _, step, steps in job.port.messages} >= {(step, 8) for step in range(1, 8)}
        assert any("Sleep (9), node 2 of 4, step 3 of 8" in message for message, _, _ in job.port.messages)
        # A sampler's steps weigh more than the node before it.
        (at_half,) = {
            fraction for fraction, (_, step, _) in zip(job.port.fractions, job.port.messages, strict=True) if step == 4
        } or {0.0}
        assert 0.4 < at_half < 0.7

    against_the_double(body, double={"legacy": legacy})


@pytest.mark.parametrize("legacy", [False, True])
def test_previews_are_partial_results(legacy: bool) -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.1, steps=3, previews=True))
        await job.value()
        preview = job.port.partials[0]
        assert (preview["kind"], preview["node"]) == ("preview", "9")
        assert preview["image"].startswith("data:image/png;base64,")
        # They are no outputs.
        assert len(job.files) == 1

    against_the_double(body, double={"legacy": legacy})


def test_previews_can_be_switched_off() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.1, steps=3, previews=True))
        await job.value()
        assert job.port.partials == []

    against_the_double(body, previews=False)


def test_many_instant_prompts_all_end() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        colors = (1, 2, 3, 1, 2, 3, 1, 1, 1, 2)
        jobs = [Attempt(connector, picture(color), job_id=at) for at, color in enumerate(colors)]
        values = [await job.value() for job in jobs]
        assert len({value["prompt_id"] for value in values}) == len(jobs)
        assert set(server.counts.submissions.values()) == {1}

    against_the_double(body)


def test_without_any_message_the_prompt_is_still_seen_to_end(monkeypatch) -> None:
    monkeypatch.setattr(listener, "HEARD_S_MAX", 0.3)

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        server.deaf = True
        assert (await Attempt(connector, sleeping(0.3)).value())["outputs"]

    async def run() -> None:
        async with ComfyUIDouble() as server, opened(server.url) as connector:
            await body(server, connector)

    asyncio.run(run())


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "kind", "media_type"),
    [
        (with_output("VHS_VideoCombine", filename_prefix="clips/a"), "gifs", "video/mp4"),
        (with_output("SaveVideo", filename_prefix="video/a"), "images", "video/mp4"),
        (
            {"4": {"class_type": "SaveAudio", "inputs": {"seconds": 0.1, "filename_prefix": "audio/deep/a"}}},
            "audio",
            "audio/flac",
        ),
    ],
)
def test_video_and_audio_are_fetched_from_their_folders(graph: Any, kind: str, media_type: str) -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, graph)
        (output,) = (await job.value())["outputs"]
        assert (output["kind"], output["asset"].media_type) == (kind, media_type)
        (_, name, data, about) = job.port.shelf.saved[0]
        assert name == f"a.{media_type.rpartition('/')[2]}"
        assert about["node"] == "4"
        assert data in [path.read_bytes() for path in server.directory.rglob(output["filename"])]

    against_the_double(body)


def test_other_data_of_nodes_is_part_of_the_result() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = picture()
        graph["4"] = {"class_type": "MakeGrid", "inputs": {"image": ["2", 0]}}
        graph["3"]["inputs"]["images"] = ["4", 0]
        value = await Attempt(connector, graph).value()
        assert value["data"] == {"4": {"grid": [{"columns": 1, "rows": 1}], "note": ["one column"]}}

    against_the_double(body)


def test_temporary_files_count_where_they_are_wanted() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = picture()
        graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        for wish, count in (("if_alone", 1), ("always", 2), ("never", 1)):
            job = Attempt(connector, {"workflow": graph, "temporary_files": wish}, job_id=count + len(wish))
            assert len((await job.value())["outputs"]) == count

    against_the_double(body)


def test_a_cached_file_that_was_deleted_is_made_again_by_the_next_attempt() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        await Attempt(connector, picture(), job_id=1).value()
        for path in (server.directory / "output").iterdir():
            path.unlink()
        job = Attempt(connector, picture(), job_id=2)
        with pytest.raises(BadResponse, match="deleted since"):
            await job.value()
        assert server.counts.freed == [{"unload_models": False, "free_memory": True}]
        again = Attempt(
            connector, picture(), job_id=2, epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint
        )
        assert len((await again.value())["outputs"]) == 1

    against_the_double(body)


def test_a_file_that_vanished_under_the_run_is_not_found() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        server.history_delay_s = 0.3
        job = Attempt(connector, picture())
        await until(lambda: any((server.directory / "output").iterdir()), "the file")
        for path in (server.directory / "output").iterdir():
            path.unlink()
        with pytest.raises(NotFound, match="lost the file"):
            await job.value()

    against_the_double(body)


def test_when_the_assets_store_fails_the_prompt_is_not_run_again() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, picture())
        job.port.shelf.failing = ServiceUnavailable("the store is away")
        with pytest.raises(ServiceUnavailable, match="store is away"):
            await job.value()
        again = Attempt(connector, picture(), epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
        assert (await again.value())["adopted"]
        assert server.counts.submissions.total() == 1

    against_the_double(body)


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_node_that_runs_out_of_memory() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, failing("torch.OutOfMemoryError", "Allocation on device"))
        with pytest.raises(OutOfMemory, match=r"RaiseError \(9\): OutOfMemoryError: Allocation on device"):
            await job.value()
        # The next attempt begins anew: an end like this is not taken up.
        again = Attempt(connector, failing("x.Other"), epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
        with pytest.raises(ConnectorError, match="Other"):
            await again.value()
        assert server.counts.submissions.total() == 2

    against_the_double(body)


def test_words_in_a_message_decide_nothing() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        with pytest.raises(ConnectorError) as caught:
            await Attempt(connector, failing("RuntimeError", "CUDA out of memory")).value()
        assert caught.value.failure == "internal"

    against_the_double(body)


def test_a_blocked_branch_is_no_failure() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = picture()
        graph["9"] = {"class_type": "BlockExecution", "inputs": {"image": ["1", 0], "message": "no"}}
        graph["2"]["inputs"]["image"] = ["9", 0]
        assert (await Attempt(connector, graph).value())["outputs"]

    against_the_double(body)


def test_an_interrupt_by_someone_else_is_charged_to_nobody() -> None:
    async def run() -> None:
        async with ComfyUIDouble() as server, opened(server.url) as connector:
            job = Attempt(connector, sleeping(20, 800))
            await running(server, job)
            async with aiohttp.ClientSession() as session:
                await session.post(f"{server.url}/interrupt")
            with pytest.raises(ServiceUnavailable, match="someone else") as caught:
                await job.value()
            assert caught.value.cause is Cause.UPSTREAM
            assert job.context.upstream.handle.ended

    asyncio.run(run())
