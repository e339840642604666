"""The ComfyUI connectors against the double, where it misbehaves as real servers do, or counts what must not happen."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from services_comfyui import Attempt, Port, opened, picture, sleeping, until, with_output

from empd.connectors.failures import (
    BadResponse,
    ConnectorError,
    InvalidInput,
    NotFound,
    OutOfMemory,
    ProcessCrashed,
    ServiceUnavailable,
)
from empd.connectors.service.comfyui import listener
from empd.connectors.service.comfyui.connector import ComfyUIConnector
from empd.job import Cause, format_id
from tests.doubles.comfyui import ComfyUIDouble

Body = Callable[[ComfyUIDouble, ComfyUIConnector], Awaitable[None]]


def against_the_double(
    body: Body, name: str = "ComfyUILocalConnector", double: dict[str, Any] | None = None, **config: Any
) -> None:
    """Runs a test's body; whatever it did, no prompt was submitted before someone listened, and none was hit that
    nobody wanted to hit."""

    async def run() -> None:
        async with ComfyUIDouble(**(double or {})) as server, opened(server.url, name, **config) as connector:
            await body(server, connector)
            assert server.counts.deaf_submissions == 0
            assert server.counts.interrupts_global == 0

    asyncio.run(run())


async def running(server: ComfyUIDouble, job: Attempt) -> str:
    """Waits until a job's prompt runs; its id."""

    def prompt_id() -> str:
        assert not job.task.done(), job.task.exception()
        found = server.running.prompt_id if server.running and job.port.fractions else ""
        return found if f"-{format_id(job.context.job_id)}-" in found else ""

    return await until(prompt_id, "the prompt to run")


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


def failing(kind: str, message: str = "boom") -> Any:
    """A graph whose node 9 raises."""
    graph = picture()
    graph["9"] = {"class_type": "RaiseError", "inputs": {"image": ["1", 0], "exception_type": kind, "message": message}}
    graph["2"]["inputs"]["image"] = ["9", 0]
    return graph


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


# --- loss ------------------------------------------------------------------------------------------------------------


def test_a_restart_in_mid_prompt_is_a_loss_and_not_an_end() -> None:
    async def run() -> None:
        async with ComfyUIDouble() as server, opened(server.url) as connector:
            job = Attempt(connector, sleeping(20, 800, color=1))
            await running(server, job)
            waiting = Attempt(connector, sleeping(20, 800, color=2), job_id=8)
            await until(lambda: len(server.queue) == 1, "the second prompt to wait")
            await server.restart(down_s=0.3)
            with pytest.raises(ProcessCrashed, match="lost the prompt while it ran"):
                await job.value()
            # What had not begun is not to blame.
            with pytest.raises(ServiceUnavailable, match="before it ran") as caught:
                await waiting.value()
            assert caught.value.cause is Cause.UPSTREAM
            again = Attempt(connector, picture(), epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
            assert not (await again.value())["adopted"]

    asyncio.run(run())


def test_a_server_that_stays_away_is_not_waited_for_for_ever() -> None:
    async def run() -> None:
        server = ComfyUIDouble()
        await server.start()
        async with opened(server.url, outage_s_max=0.5) as connector:
            job = Attempt(connector, sleeping(20, 800))
            await running(server, job)
            await server.stop()
            with pytest.raises(ServiceUnavailable):
                await job.value()
            assert not job.context.upstream.handle.ended

    asyncio.run(run())


def test_a_submission_that_got_no_answer_is_looked_for_before_it_is_repeated() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        # The prompt arrives, its answer does not.
        server.lose_answers = 1
        assert (await Attempt(connector, sleeping(0.2)).value())["outputs"]
        assert list(server.counts.submissions.values()) == [1]
        # Neither arrives.
        server.fail_next = [503]
        assert (await Attempt(connector, picture(), job_id=9).value())["outputs"]
        assert set(server.counts.submissions.values()) == {1}

    against_the_double(body)


def test_a_submission_is_not_tried_more_often_than_configured() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        server.refuse_prompts = 503
        with pytest.raises(ServiceUnavailable):
            await Attempt(connector, picture()).value()
        assert server.refused == 2
        server.refuse_prompts = 0
        assert (await Attempt(connector, picture(), job_id=8).value())["outputs"]

    against_the_double(body)


def test_a_server_that_chooses_ids_itself_is_told_apart_and_left_clean() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        server.own_ids = True
        with pytest.raises(ServiceUnavailable, match="too old") as caught:
            await Attempt(connector, sleeping(20, 800)).value()
        assert not caught.value.retry
        await until(lambda: server.running is None and not server.queue, "nothing to be left there")

    against_the_double(body)


def test_a_history_that_was_cleared_does_not_make_a_success_a_loss() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        server.forgetful = True
        job = Attempt(connector, sleeping(0.1))
        assert len((await job.value())["outputs"]) == 1

    against_the_double(body)


# --- cancel, and the next attempt ------------------------------------------------------------------------------------


def test_cancel_races_with_the_end_and_never_hits_a_neighbour() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        ends = {"completed": 0, "cancelled": 0}
        for at in range(24):
            job = Attempt(connector, sleeping(0.02, steps=2, color=at), job_id=100 + 2 * at)
            neighbour = Attempt(connector, sleeping(0.02, steps=2, color=50 + at), job_id=101 + 2 * at)
            await asyncio.sleep(at * 0.003)
            await job.stop("cancelled")
            try:
                await job.value()
                ends["completed"] += 1
            except ConnectorError:
                ends["cancelled"] += 1
            assert (await neighbour.value())["outputs"]
        assert sum(ends.values()) == 24
        assert ends["cancelled"]
        stopped = {*server.counts.interrupted, *server.counts.deleted}
        assert all(int(prompt_id.split("-")[1][-5:], 36) >= 0 for prompt_id in stopped)
        assert len(stopped) <= ends["cancelled"]

    against_the_double(body)


def test_a_time_out_stops_the_prompt_and_a_drain_leaves_it() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        late = Attempt(connector, sleeping(20, 800, color=1))
        prompt_id = await running(server, late)
        await late.stop("timeout")
        with pytest.raises(ConnectorError):
            await late.value()
        assert server.counts.interrupted == [prompt_id]
        left = Attempt(connector, sleeping(0.5, color=2), job_id=8)
        prompt_id = await running(server, left)
        await left.stop("drain")
        with pytest.raises(ConnectorError, match="left at ComfyUI"):
            await left.value()
        assert server.running is not None
        assert server.running.prompt_id == prompt_id

    against_the_double(body)


def test_a_prompt_that_does_not_stop_costs_its_server() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        reasons: list[str] = []
        connector.site = connector.site._replace(recycle_server=reasons.append)
        job = Attempt(connector, sleeping(20, 1))
        await running(server, job)
        await job.stop("cancelled")
        await asyncio.sleep(0.1)
        assert not job.task.done()
        job.task.cancel()  # as a worker does when the grace is over
        with pytest.raises(asyncio.CancelledError):
            await job.task
        assert reasons == ["a prompt does not stop"]

    against_the_double(body)


def test_a_waiting_prompt_tells_its_place() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        first = Attempt(connector, sleeping(60, 1000), job_id=1)
        await running(server, first)
        waiting = []
        for ahead in (1, 2):
            job = Attempt(connector, picture(ahead), job_id=1 + ahead)
            wanted = (f"waits at ComfyUI, {ahead} before it", 0, 0)
            await until(lambda job=job, wanted=wanted: wanted in job.port.messages, "the place")
            waiting.append(job)
        await first.stop("cancelled")
        for job in waiting:
            assert (await job.value())["outputs"]
            assert job.port.fractions == sorted(job.port.fractions)
        with pytest.raises(ConnectorError):
            await first.value()

    against_the_double(body)


def test_a_prompt_at_another_instance_is_taken_up_there() -> None:
    async def run() -> None:
        async with ComfyUIDouble() as one, ComfyUIDouble() as two:
            async with opened(one.url) as connector:
                job = Attempt(connector, sleeping(1.0))
                await running(one, job)
                await job.stop("drain")
                with pytest.raises(ConnectorError):
                    await job.value()
            async with opened(two.url) as connector:
                again = Attempt(
                    connector, sleeping(1.0), epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint
                )
                assert (await again.value())["adopted"]
                assert again.port.fractions
            assert (one.counts.submissions.total(), two.counts.submissions.total()) == (1, 0)

    asyncio.run(run())


def test_a_connection_that_the_server_has_forgotten_is_made_anew() -> None:
    """A socket of the same client is closed after the successor's was opened: the server forgets both."""

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = sleeping(3.0, 300)
        job = Attempt(connector, graph)
        prompt_id = await running(server, job)
        await job.stop("drain")
        with pytest.raises(ConnectorError):
            await job.value()
        await until(lambda: not server.sockets, "the old connection to be gone")
        async with aiohttp.ClientSession() as session:
            ghost = await session.ws_connect(f"{server.url}/ws?clientId={prompt_id}")
            again = Attempt(connector, graph, epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
            await until(lambda: server.connections == 3, "the successor to connect")
            await ghost.close()
        await until(lambda: len(set(again.port.fractions)) > 3, "progress to be heard again")
        assert (await again.value())["adopted"]
        assert 4 <= server.connections <= 6

    against_the_double(body)


def test_a_connection_that_breaks_is_made_again_and_progress_goes_on() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(2.0, 200))
        prompt_id = await running(server, job)
        await server.sockets[prompt_id].close()
        await until(lambda: server.connections == 2, "another connection")
        seen = len(set(job.port.fractions))
        await until(lambda: len(set(job.port.fractions)) > seen + 3, "progress")
        assert not (await job.value())["adopted"]

    against_the_double(body)


def test_of_several_left_prompts_one_is_taken_up_and_the_others_go() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(1.0))
        first = await running(server, job)
        async with aiohttp.ClientSession() as session:
            for epoch in ("aa", "bb"):
                stray = {"prompt": sleeping(5, color=3), "prompt_id": first.rpartition("-")[0] + f"-{epoch}"}
                await session.post(f"{server.url}/prompt", json=stray)
        await job.stop("drain")
        with pytest.raises(ConnectorError):
            await job.value()
        again = Attempt(connector, sleeping(1.0), epoch=1 << 33, attempt=2)
        assert (await again.value())["prompt_id"] == first
        assert len(server.counts.deleted) == 2

    async def run() -> None:
        async with ComfyUIDouble() as server, opened(server.url) as connector:
            await body(server, connector)

    asyncio.run(run())


def test_pictures_that_only_went_over_a_socket_are_made_again() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = sleeping(0.4)
        graph["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["2", 0]}}
        job = Attempt(connector, graph)
        await running(server, job)
        await job.stop("drain")
        with pytest.raises(ConnectorError):
            await job.value()
        again = Attempt(connector, graph, epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
        value = await again.value()
        assert not value["adopted"]
        assert len(again.files) == 1

    against_the_double(body)


# --- between jobs, elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "freed"),
    [
        ({}, []),
        ({"free_after_job": "memory"}, [{"unload_models": False, "free_memory": True}]),
        ({"free_after_job": "models"}, [{"unload_models": True, "free_memory": True}]),
        ({"vram_free_bytes_min": 20 << 30}, [{"unload_models": True, "free_memory": True}]),
        ({"vram_free_bytes_min": 10 << 30}, []),
    ],
)
def test_memory_is_let_go_between_jobs(config: dict[str, Any], freed: list[Any]) -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        await Attempt(connector, picture()).value()
        assert server.counts.freed == freed

    against_the_double(body, **config)


def test_models_queue_and_memory_are_told() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        assert "sdxl_base_1.0.safetensors" in await connector.models()
        info = await connector.service_info()
        assert info["vram_total_bytes"] - info["vram_free_bytes"] == connector.vram_used_bytes == 6 << 30

    against_the_double(body)


def test_credentials_go_with_every_call_and_the_socket() -> None:
    config = {"auth": {"type": "bearer", "token": "hunter2"}}

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.1))
        await job.value()
        assert server.counts.sockets_max == 1
        assert job.port.fractions

    against_the_double(body, "ComfyUIRemoteConnector", {"token": "Bearer hunter2"}, **config)


def test_wrong_credentials_close_the_service() -> None:
    async def run() -> None:
        from services_comfyui import connector_at

        async with ComfyUIDouble(token="Bearer right") as server:
            connector = connector_at(server.url, "ComfyUIRemoteConnector", auth={"type": "bearer", "token": "wrong"})
            assert not await connector.start()
            assert "credentials" in connector.reason
            assert "wrong" not in connector.reason
            await connector.stop()

    asyncio.run(run())


def test_tls_with_a_ca_of_ones_own(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=comfyui"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, sleeping(0.1))
        assert (await job.value())["outputs"]
        assert job.port.fractions

    against_the_double(body, "ComfyUIRemoteConnector", {"tls": tls}, ca_file=str(cert))


# --- advanced and batch ----------------------------------------------------------------------------------------------


def template() -> Any:
    """Colour and prefix have names."""
    graph = picture()
    graph["1"]["inputs"]["color"] = "{{color}}"
    graph["3"]["inputs"]["filename_prefix"] = "set-{{name:default}}"
    return graph


def test_a_template_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "portrait.json").write_text(json.dumps(template()))

    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        payload = {"template": "portrait", "parameters": {"color": 7, "1.width": 16}, "outputs": ["SaveImage"]}
        job = Attempt(connector, payload)
        (output,) = (await job.value())["outputs"]
        assert output["filename"].startswith("set-default_")
        with pytest.raises(InvalidInput, match=r"parameters\.color: missing"):
            await Attempt(connector, {"template": "portrait"}, job_id=8).value()
        with pytest.raises(InvalidInput, match="there are: portrait"):
            await Attempt(connector, {"template": "landscape"}, job_id=9).value()

    against_the_double(body, "ComfyUIAdvancedConnector", templates_dir=str(tmp_path))


def test_chance_seeds_are_the_same_in_every_attempt() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        payload = {"workflow": sleeping(0.01, seed=1), "seed": "random"}
        seeds = [
            (await Attempt(connector, payload, job_id=job_id, epoch=epoch, attempt=epoch).value())["seeds"]["9"]
            for job_id, epoch in ((1, 1), (1, 2), (2, 1))
        ]
        assert seeds[0] == seeds[1] != seeds[2]

    against_the_double(body, "ComfyUIAdvancedConnector")


def batch(*colors: Any, **more: Any) -> dict[str, Any]:
    """One item for each colour."""
    return {"workflow": template(), "items": [{"parameters": {"color": color}} for color in colors], **more}


def test_a_batch_has_a_result_and_progress_for_each_item() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        job = Attempt(connector, batch(1, 2, 3, shared={"parameters": {"name": "x"}}))
        value = await job.value()
        assert (value["completed"], value["failed"]) == (3, 0)
        assert [item["index"] for item in value["items"]] == [0, 1, 2]
        assert [output for output, _, _, _ in job.port.shelf.saved] == [0, 1000, 2000]
        assert len(set(job.files)) == 3
        assert job.port.fractions == sorted(job.port.fractions)
        assert {partial["index"] for partial in job.port.partials if partial["kind"] == "item"} == {0, 1, 2}
        assert any("item 2 of 3: " in message for message, _, _ in job.port.messages)

    against_the_double(body, "ComfyUIBatchConnector")


def test_an_item_that_fails_is_tried_again_and_the_others_go_on() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = failing("RuntimeError")
        graph["9"]["inputs"]["exception_type"] = "{{kind}}"
        graph["2"]["inputs"]["image"] = ["{{from}}", 0]
        items = [{"parameters": {"2.image": [node, 0], "kind": "RuntimeError"}} for node in ("1", "9", "1")]
        graph["2"]["inputs"]["image"] = ["1", 0]
        payload = {"workflow": graph, "items": items, "item_retries": 2}
        value = await Attempt(connector, payload).value()
        assert (value["completed"], value["failed"]) == (2, 1)
        assert value["items"][1]["error"]["failure"] == "internal"
        # Three times: the first, and two more.
        assert sum("-1-" in prompt_id for prompt_id in server.counts.submissions) == 3
        assert set(server.counts.submissions.values()) == {1}
        with pytest.raises(ConnectorError, match="boom"):
            await Attempt(connector, {**payload, "on_failure": "fail"}, job_id=8).value()
        with pytest.raises(ConnectorError, match="all 1 items failed"):
            await Attempt(connector, {**payload, "items": items[1:2]}, job_id=9).value()

    against_the_double(body, "ComfyUIBatchConnector")


def test_the_next_attempt_at_a_batch_goes_on_where_the_last_one_stood() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        graph = sleeping(0.3)
        graph["9"]["inputs"]["seed"] = "{{seed}}"
        payload = {"workflow": graph, "items": [{"parameters": {"seed": seed}} for seed in range(4)]}
        job = Attempt(connector, payload)
        await until(lambda: server.counts.started.total() == 3, "the third item")
        await job.stop("drain")
        with pytest.raises(ConnectorError):
            await job.value()
        again = Attempt(connector, payload, epoch=1 << 33, attempt=2, checkpoint=job.context.last_checkpoint)
        value = await again.value()
        assert (value["completed"], len(value["items"])) == (4, 4)
        assert value["items"][2]["adopted"]
        assert server.counts.submissions.total() == 4

    against_the_double(body, "ComfyUIBatchConnector")


def test_a_batch_names_the_item_that_is_wrong() -> None:
    async def body(server: ComfyUIDouble, connector: ComfyUIConnector) -> None:
        with pytest.raises(InvalidInput, match=r"items\[1\]: parameters\.colour"):
            payload = batch(1, 2)
            payload["items"][1]["parameters"]["colour"] = 3
            await Attempt(connector, payload).value()
        assert server.counts.submissions.total() == 0

    against_the_double(body, "ComfyUIBatchConnector")


def test_the_log_has_what_the_schema_says() -> None:
    async def run() -> None:
        from empd.connectors.logger import ConnectorLogger

        records: list[dict[str, Any]] = []
        async with ComfyUIDouble() as server, opened(server.url) as connector:
            connector.log = ConnectorLogger.to(lambda record: records.append(dict(record)))
            await connector.service_info()
            graph = sleeping(0.1)
            graph["8"] = {
                "class_type": "CheckpointLoaderSimple",
                "inputs": {"ckpt_name": "sdxl_base_1.0.safetensors"},
            }
            job = Attempt(connector, graph)
            value = await job.value()
        (ended,) = [record for record in records if record["event"] == "service_prompt_ended"]
        assert ended["schema"] == "comfyui"
        assert ended["prompt_id"] == ended["client_id"] == value["prompt_id"]
        assert ended["websocket_message_type"] in ("executing", "execution_success", "progress_state", "executed")
        assert ended["node_id"] == "3"
        assert ended["model_name"] == "sdxl_base_1.0.safetensors"
        assert ended["vram_usage"] == 6 << 30
        assert len(ended["workflow_hash"]) == 16
        assert Port().instance in ended["prompt_id"]

    asyncio.run(run())
