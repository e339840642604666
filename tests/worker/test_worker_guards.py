"""Guards around a worker's claims and lanes: each by itself, so that taking it out shows."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_worker_lanes import INSTANT, LONG, SWALLOW, Rig, Scripted
from worker_broker import BrokerDouble, simulation

from empd.connectors.service.pool_child import Process
from empd.lifecycle import Child, ChildKind
from empd.memory.board import Board, Identity
from empd.payload import INLINE_BYTES_MAX
from empd.wire import frames
from empd.worker.activity import Activities
from empd.worker.tally import Tally


def test_what_an_earlier_connection_assigned_does_not_run(broker: BrokerDouble, start) -> None:
    """It can be read after the new connection's Hello, which has not named it: the broker gives it to somebody else."""
    start({"s": simulation()}).ready()
    broker.welcoming = False
    broker.restart()
    broker.wait(frames.WorkerHello, 2)
    broker.assign("s", [None])
    broker.send(frames.WorkerWelcome(frames.VERSION, 2, "0" * 32))
    own = broker.assign("s", [None])[0]
    broker.result(own)
    broker.roundtrip()
    assert set(broker.done()) == {own}


def in_loop(tmp_path: Path, concurrency: int, scene: Any, kind: type[Scripted] = Scripted) -> None:
    """Plays `scene(rig)` and ends its lanes."""

    async def run() -> None:
        rig = Rig(tmp_path, concurrency, kind)
        try:
            async with asyncio.timeout(60):
                await scene(rig)
            assert rig.lost == []
        finally:
            await rig.lanes.close()

    asyncio.run(run())


def test_a_stop_of_an_earlier_epoch_hits_nobody(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        claims = rig.assign([LONG, INSTANT])  # one runs, one waits for the lane
        await rig.settle()
        assert not any(rig.lanes.stop((job_id, epoch - 1), "cancelled") for job_id, epoch in claims)
        rig.service.gate.set()
        await rig.idle()
        assert rig.ends() == [(job_id, "done") for job_id, _ in claims]

    in_loop(tmp_path, 1, scene)


class Exiting(Scripted):
    """Ends in ways that connectors should not."""

    async def process(self, job: Any, context: Any) -> Any:
        if context.payload == INSTANT:
            raise SystemExit(3)
        return await super().process(job, context)


@pytest.mark.parametrize("reason", ["cancelled", "timeout", "drain", "abandon"])
def test_every_end_gives_its_slot_back(tmp_path: Path, reason: str) -> None:
    async def scene(rig: Rig) -> None:
        claims = rig.assign([LONG, SWALLOW, INSTANT, LONG])
        await rig.settle()
        assert rig.service.active_jobs == 2
        for claim in claims:
            rig.lanes.stop(claim, reason)
        await rig.idle()
        assert rig.service.active_jobs == 0
        assert rig.lanes.busy == 0
        assert list(rig.lanes.held()) == []
        after = rig.assign([LONG, LONG])
        await rig.settle()
        assert rig.service.running == 2, "both lanes are there"
        assert [lane.task.cancelling() for lane in rig.lanes._lanes if lane.task] == [0, 0]
        rig.service.gate.set()
        await rig.idle()
        assert rig.ends()[-2:] == [(job_id, "done") for job_id, _ in after]

    in_loop(tmp_path, 2, scene, Exiting)


def test_a_job_that_is_abandoned_tells_no_result(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        claims = rig.assign([SWALLOW, LONG])
        await rig.settle()
        for claim in claims:
            assert rig.lanes.stop(claim, "abandon")
        await rig.idle()
        rig.outbox.flush()
        named = [tuple(claim) for frame in rig.frames if isinstance(frame, frames.Abandoned) for claim in frame.jobs]
        assert sorted(named) == claims
        assert not [frame for frame in rig.frames if isinstance(frame, frames.Done)]

    in_loop(tmp_path, 2, scene)


def test_a_late_cancel_leaves_the_lanes_next_job_alone(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        first, second = rig.assign([LONG, LONG])
        await rig.settle()
        [lane] = rig.lanes._lanes
        context = lane.context
        assert context is not None
        rig.lanes.stop(first, "cancelled")
        await rig.settle()
        assert lane.context is not None
        assert lane.context.job.id == second[0]
        rig.lanes._cancel_late(lane, context)
        rig.service.gate.set()
        await rig.idle()
        assert rig.ends() == [(first[0], "cancelled"), (second[0], "done")]

    in_loop(tmp_path, 1, scene)


def test_a_stop_does_not_undo_a_job_whose_result_is_being_put_away(tmp_path: Path, monkeypatch) -> None:
    async def scene(rig: Rig) -> None:
        began, go_on = threading.Event(), threading.Event()
        put = rig.lanes._outcomes._arena.put

        def slow_put(*said: Any, **named: Any) -> Any:
            began.set()
            assert go_on.wait(60)
            return put(*said, **named)

        monkeypatch.setattr(rig.lanes._outcomes._arena, "put", slow_put)
        claim = rig.assign([LONG])[0]
        while not began.is_set():
            await asyncio.sleep(0.001)
        assert rig.lanes.stop(claim, "cancelled")
        await rig.settle()
        go_on.set()
        await rig.idle()
        assert rig.ends() == [(claim[0], "done")]

    in_loop(tmp_path, 1, scene, Large)


class Large(Scripted):
    """Gives results that travel through the arena."""

    async def process(self, job: Any, context: Any) -> Any:
        return bytes(INLINE_BYTES_MAX + 1)


def test_what_waits_for_a_lane_that_is_lost_gets_another(tmp_path: Path) -> None:
    """By a fault outside of any job, as in what is counted of it afterwards."""

    async def run() -> None:
        rig = Rig(tmp_path, 1)
        rig.service.gate.set()
        count = rig.hosted.tally.ran
        faults = [ZeroDivisionError()]

        def ran(took_ns: int) -> None:
            if faults:
                raise faults.pop()
            count(took_ns)

        rig.hosted.tally.ran = ran  # type: ignore[method-assign]
        rig.assign([INSTANT, LONG])
        try:
            await rig.idle()
            assert [type(error) for error in rig.lost] == [ZeroDivisionError]
            assert [end for _, end in rig.ends()] == ["done", "done"]
        finally:
            await rig.lanes.close()

    asyncio.run(run())


def test_the_first_result_is_on_the_board_at_once_and_none_is_written_after_the_end() -> None:
    failures: list[dict[str, Any]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, failure: failures.append(failure))
        board = Board.create(1)
        board.writer(0, Identity).write(Identity(ChildKind.WORKER, "w-0", pid=1, generation=7))
        child = Child(ChildKind.WORKER, "w-0", 0, 7, socket.socket(), board.fd, 2, None, None)
        activities, tally = Activities(child, 0, lambda: None), Tally("s")
        activities.watch(None, [tally])  # type: ignore[arg-type]
        activities.heartbeat()
        tally.completed += 1
        activities.note(time.monotonic_ns())
        activity = board.read(0).activity
        assert activity is not None
        assert activity.jobs_done == 1
        activities.note(time.monotonic_ns())  # soon after the last: it is written later, by a timer
        activities.close()
        await asyncio.sleep(0.1)  # twice as long as that would take
        child.control.close()

    asyncio.run(run())
    assert failures == []


def test_a_pool_process_takes_the_reset_by_a_killed_worker_for_its_end() -> None:
    worker, own = socket.socketpair()
    with worker, own, asyncio.Runner() as runner:
        own.sendall(b"what the worker never read")
        worker.close()
        Process(own, runner).serve()
