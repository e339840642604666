"""`AsyncClient` over real sockets, under asyncio's own loop and under uvloop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from client_model import ModelBroker, failing, serving
from test_client_sockets import HistoryDouble, waiting

from empd.client import AsyncClient
from empd.errors import FailureClass, JobDead, NotRunning, ProtocolError, Refused, ResultTimeout
from empd.result import FinishedJob
from empd.wire import codec, frames

Runner = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Runs a coroutine to its end on one of the two loops, bounded in time."""

    def on_asyncio(main: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(main, 30))

    def on_uvloop(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(asyncio.wait_for(main, 30))

    return on_asyncio if request.param == "asyncio" else on_uvloop


async def until(condition: Callable[[], Any]) -> None:
    """Polls a condition, bounded."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_submit_and_result(folder: Path, run: Runner) -> None:
    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint, window=1_000) as client:
            handle = await client.submit("s", {"x": 3})
            assert await handle.result(60) == {"x": 3}
            assert await handle.exception() is None
            assert handle.done()
            assert (await handle.status()).state == "completed"
            jobs = await client.submit_many("s", range(5_000))
            assert await jobs.results(60) == list(range(5_000))
            for _ in range(2):
                assert {one.number async for one in jobs.as_completed(5)} == {one.number for one in jobs}
            gathered = await asyncio.gather(*[_one(client, n) for n in range(2_000)])
            assert gathered == list(range(2_000))
            assert await client.status() == {"waiting": 0}

    async def _one(client: AsyncClient, n: int) -> Any:
        return await (await client.submit("s", n)).result(60)

    with serving(folder, ModelBroker()) as double:
        run(main(double.endpoint))


def test_single_submits_in_a_row_do_not_look_at_the_socket_each(folder: Path, run: Runner) -> None:
    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            await client.connect()
            channel, looks = client._pump._channel, 0
            assert channel is not None
            receive = channel.receive

            def nothing() -> list[bytes]:
                nonlocal looks
                looks += 1
                return []

            channel.receive = nothing  # type: ignore[method-assign]
            handles = [await client.submit("s", n) for n in range(600)]
            assert looks == 6, "twice for the first job, and for each full frame"
            channel.receive = receive  # type: ignore[method-assign]
            client._pump.exchange()
            assert [await handle.result(60) for handle in handles] == list(range(600))

    with serving(folder, ModelBroker()) as double:
        run(main(double.endpoint))


def test_it_connects_at_its_first_use(folder: Path, run: Runner) -> None:
    async def main(endpoint: str) -> None:
        client = AsyncClient(endpoint)
        first, second = await asyncio.gather(client.submit("s", 1), client.submit("s", 2))
        assert await first.result(60) + await second.result(60) == 3
        await client.close()
        await client.close()
        with pytest.raises(Refused, match="closed"):
            await client.submit("s", 1)
        with pytest.raises(NotRunning, match="no empd answers"):
            async with AsyncClient(f"{endpoint}.nobody", connect_timeout_s=0.05):
                pass

    with serving(folder, ModelBroker()) as double:
        run(main(double.endpoint))
        assert double.model.last_session == 1


def test_timeouts_cancel_and_events(folder: Path, run: Runner) -> None:
    async def main(double: Any) -> None:
        async with AsyncClient(double.endpoint) as client:
            jobs = await client.submit_many("s", [b"\x01", b"\x02", b"\x03"])
            with pytest.raises(ResultTimeout):
                await jobs[0].result(0.02)
            with pytest.raises(ResultTimeout):
                await jobs.results(0.02)
            assert await jobs[0].accepted(5)
            events = jobs[0].events(interval_s=0.01)
            assert (await anext(events)).state == "waiting"
            assert await jobs[0].cancel() is True
            assert [status.state async for status in events] == ["cancelled"]
            assert await jobs[0].cancel() is False
            double.finish(1)
            assert await jobs[1].result(60) == 2
            assert await jobs.cancel() == 1
            assert jobs[1].on_end is None

    with serving(folder, ModelBroker(waiting)) as double:
        run(main(double))


def test_many_short_waits_leave_no_watchers(folder: Path, run: Runner) -> None:
    async def main(double: Any) -> None:
        async with AsyncClient(double.endpoint) as client:
            handle = await client.submit("s", b"\x01")
            for _ in range(50):
                with pytest.raises(ResultTimeout):
                    await handle.result(0)
            assert not handle.on_end
            await client.flush()
            double.finish()
            assert await asyncio.gather(*[handle.result(60) for _ in range(10)]) == [1] * 10

    with serving(folder, ModelBroker(waiting)) as double:
        run(main(double))


def test_restarts_lose_nothing(folder: Path, run: Runner) -> None:
    async def main(double: Any) -> int:
        async with AsyncClient(double.endpoint, window=500) as client:

            async def restart() -> None:
                for _ in range(4):
                    await asyncio.sleep(0.05)
                    await asyncio.to_thread(double.stop)
                    await asyncio.sleep(0.02)
                    await asyncio.to_thread(double.start)

            killer = asyncio.create_task(restart())
            submitted = 0
            while not killer.done() or submitted < 1_000:
                jobs = await client.submit_many("s", range(submitted, submitted + 300))
                assert await jobs.results(60) == list(range(submitted, submitted + 300))
                submitted += 300
            await killer
            return submitted

    with serving(folder, ModelBroker()) as double:
        submitted = run(main(double))
        assert len(double.model.taken) == submitted
        assert set(double.model.taken.values()) == {1}


def test_leaving_with_jobs_that_nobody_acknowledged_is_told(folder: Path, run: Runner) -> None:
    async def main(endpoint: str) -> None:
        client = AsyncClient(endpoint)
        await client.connect()
        double.stop()
        await client.submit("s", 1)
        with pytest.raises(NotRunning, match="1 job was not acknowledged within 0"):
            await client.close(timeout=0.1)
        double.start()

    with serving(folder, ModelBroker()) as double:
        run(main(double.endpoint))


def test_the_window_makes_submit_wait(folder: Path, run: Runner) -> None:
    async def main(double: Any) -> None:
        async with AsyncClient(double.endpoint, window=5) as client:
            submitting = asyncio.create_task(client.submit_many("s", [b"\x01"] * 12))
            await until(lambda: len(double.model.taken) == 5)
            assert not submitting.done()
            double.finish()
            await until(lambda: len(double.model.taken) == 10)
            double.finish()
            assert len(await submitting) == 12
            double.finish()

    with serving(folder, ModelBroker(waiting)) as double:
        run(main(double))


def test_bad_bytes_end_every_wait(folder: Path, run: Runner) -> None:
    async def main(double: Any) -> None:
        async with AsyncClient(double.endpoint) as client:
            handles = [await client.submit("s", b"\x01") for _ in range(3)]
            waits = [asyncio.create_task(handle.result()) for handle in handles]
            await client.flush()
            double.say(b"\xff")
            for result in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(result, ProtocolError)
            with pytest.raises(ProtocolError):
                await client.status()

    with serving(folder, ModelBroker(waiting)) as double:
        run(main(double))


def test_failures_blobs_and_refused_types(folder: Path, run: Runner) -> None:
    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            with pytest.raises(JobDead, match="as told"):
                await (await client.submit("s", b"x" * 100_000)).result(60)
            with pytest.raises(TypeError):
                await client.submit("s", object())

    (folder / "spool").mkdir(mode=0o700)
    model = ModelBroker(failing(4, "worker_crashed"), spool=str(folder / "spool"), volatile=str(folder / "v"))
    with serving(folder, model) as double:
        run(main(double.endpoint))
        assert len(os.listdir(folder / "spool")) == 1


def test_any_job_can_be_looked_up(folder: Path, run: Runner) -> None:
    old, expired, unknown = 7 << 32, 8 << 32, 9 << 32

    async def main(double: Any) -> None:
        async with AsyncClient(double.endpoint) as theirs, AsyncClient(double.endpoint) as client:
            mine = await theirs.submit("s", b"\x01")
            assert await mine.accepted(5)
            assert await theirs.job(mine.id) is mine
            handle = await client.job(mine.id)
            assert await (await client.job(old)).result(60) == 42
            with pytest.raises(Refused, match="expired_from_history"):
                await client.job(expired)
            with pytest.raises(Refused) as caught:
                await client.job(unknown)
            assert caught.value.failure is FailureClass.NOT_FOUND
            waits = [
                asyncio.create_task((await client.job(mine.id)).result(60)),
                asyncio.create_task(handle.result(60)),
            ]
            await asyncio.sleep(0)
            double.finish()
            assert await asyncio.gather(*waits) == [1, 1]

    with serving(folder, ModelBroker(waiting)) as double:
        history = HistoryDouble(folder, {old: FinishedJob(old, 0, msgspec.msgpack.encode(42), 1, 2, 1)}, {expired})
        try:
            run(main(double))
        finally:
            history.close()


def test_rows_arrive_and_are_acknowledged(folder: Path, run: Runner) -> None:
    async def main(double: Any) -> None:
        async with AsyncClient(double.endpoint) as client:
            rows = client.subscribe("tool", 1)
            first = asyncio.ensure_future(anext(rows))
            await until(lambda: any(isinstance(frame, frames.Subscribe) for frame in double.model.seen))
            double.say(codec.encode(frames.Rows("tool", [(1, 0, 1, 0, b"a")])))
            assert await first == frames.Rows("tool", [(1, 0, 1, 0, b"a")])
            second = asyncio.ensure_future(anext(rows))
            await until(lambda: frames.CursorAck("tool", 1) in double.model.seen)
            second.cancel()

    with serving(folder, ModelBroker()) as double:
        run(main(double))
