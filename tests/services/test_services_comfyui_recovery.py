"""Prompts at a ComfyUI that restarts or loses its answers; cancel, and what the next attempt finds."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from services_comfyui import Attempt, against_the_double, opened, picture, running, sleeping, until

from empd.connectors.failures import ConnectorError, ProcessCrashed, ServiceUnavailable
from empd.connectors.service.comfyui.connector import ComfyUIConnector
from empd.job import Cause
from tests.doubles.comfyui import ComfyUIDouble

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
