"""Lanes: every job runs once, in order, within the concurrency, whatever mix of instant and waiting jobs comes."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from empd.asset import AssetConfig
from empd.connectors.base import Cancellable, Result, Service, Site
from empd.connectors.context import JobDetails
from empd.memory.arena import Arena
from empd.wire import codec, frames
from empd.worker import lanes
from empd.worker.assets import Storage
from empd.worker.hosted import Hosted, Plan
from empd.worker.lanes import Lanes
from empd.worker.log import Log
from empd.worker.outbox import Outbox
from empd.worker.outcome import Outcomes
from empd.worker.port import Port

INSTANT, PAUSE, LONG, FAIL, SWALLOW, SELF_CANCEL, LEAVE, MUTE, ODD, USES_NAMES, USES_WORDS = range(11)


class Mute(Exception):
    """Cannot tell of itself."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


RAISED = {LEAVE: GeneratorExit(), MUTE: Mute(), ODD: OSError("no file \udcff.png")}


class Scripted(Service):
    """Does what the payload says and keeps count."""

    def __init__(self, site: Site) -> None:
        Service.__init__(self, self.Config(), site)
        self.began: list[int] = []
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()

    async def process(self, job: Any, context: Any) -> Any:
        self.began.append(job.id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._script(job, context.payload)
        finally:
            self.running -= 1

    async def _script(self, job: Any, kind: int) -> Any:
        if kind == PAUSE:
            await asyncio.sleep(0)
        elif kind == LONG:
            await self.gate.wait()
        elif kind == FAIL:
            raise ValueError("as asked")
        elif kind == SWALLOW:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
        elif kind == SELF_CANCEL:
            raise asyncio.CancelledError
        elif kind in RAISED:
            raise RAISED[kind]
        elif kind in (USES_NAMES, USES_WORDS):
            return Result(job.id, {"\udcff": 1.0} if kind == USES_NAMES else {"tokens": "many"})  # type: ignore[dict-item]
        return job.id


class Interruptible(Scripted, Cancellable):
    """Is told to stop through its own method."""

    cancel_grace_s = 0.05

    def __init__(self, site: Site) -> None:
        Scripted.__init__(self, site)
        self.told: list[int] = []

    async def cancel(self, job: Any, context: Any) -> None:
        self.told.append(job.id)


class Rig:
    """Lanes around a scripted service; outcomes are read off the frames."""

    def __init__(self, directory: Any, concurrency: int, kind: type[Scripted] = Scripted) -> None:
        loop = asyncio.get_running_loop()
        self.frames: list[Any] = []
        self.outbox = Outbox(self.take, loop.call_soon)
        self.outbox.open = True
        arena = Arena(directory, directory)
        self.lost: list[Any] = []
        self.lanes = Lanes(concurrency, Outcomes(self.outbox, arena, True, lambda now_ns: None), self.lost.append)
        unused: Any = None
        site = Site(service="s", max_concurrent_jobs=concurrency)
        port = Port(unused, unused, arena, unused, Storage("s", AssetConfig(), directory, 0, Log("error")))
        self.hosted = Hosted("s", Plan("", "", {}, (), (), concurrency), site, port, Log("error"))
        self.service = kind(site)
        self.hosted.meter = self.service
        self.hosted.process = self.hosted.resume = self.service.process
        self.hosted.cancellable = self.service if isinstance(self.service, Cancellable) else None
        self.next = 0

    def take(self, frame: frames.Frame) -> bool:
        self.frames.append(frame)
        return True

    def assign(self, kinds: list[int]) -> list[tuple[int, int]]:
        details = JobDetails(service="s")
        jobs = [frames.AssignedJob(self.next + i, 7, bytes([kind])) for i, kind in enumerate(kinds)]
        self.next += len(jobs)
        self.lanes.add([(self.hosted, details, 0.0, job) for job in jobs])
        return [(job.id, job.epoch) for job in jobs]

    async def settle(self) -> None:
        """Until nothing can move by itself."""
        for _ in range(60):
            await asyncio.sleep(0)

    async def idle(self) -> None:
        async with asyncio.timeout(20):
            while self.lanes.busy:
                await asyncio.sleep(0)
        await self.settle()

    def ends(self) -> list[tuple[int, str]]:
        found = []
        for frame in (frame for frame in self.frames if isinstance(frame, frames.Done)):
            found += [(job.id, "done") for job in frame.done]
            found += [(job.id, "failed") for job in frame.failed]
            found += [(claim[0], "cancelled") for claim in frame.cancelled]
        return sorted(found)


@settings(max_examples=80, deadline=None)
@given(
    batches=st.lists(st.lists(st.sampled_from([INSTANT, PAUSE, LONG, FAIL, SELF_CANCEL]), max_size=40), max_size=6),
    concurrency=st.integers(1, 9),
    pauses=st.integers(0, 3),
)
def test_every_job_runs_once_within_the_concurrency(tmp_path_factory, batches, concurrency, pauses) -> None:
    async def run() -> None:
        rig = Rig(tmp_path_factory.getbasetemp(), concurrency)
        kinds: list[int] = []
        for batch in batches:
            rig.assign(batch)
            kinds += batch
            for _ in range(pauses):
                await asyncio.sleep(0)
        await rig.settle()
        waiting = kinds.count(LONG)
        if waiting >= concurrency:
            assert rig.service.running == concurrency, "all lanes are used while jobs wait"
        rig.service.gate.set()
        await rig.idle()
        wanted = {INSTANT: "done", PAUSE: "done", LONG: "done", FAIL: "failed", SELF_CANCEL: "failed"}
        assert rig.ends() == [(number, wanted[kind]) for number, kind in enumerate(kinds)]
        assert rig.service.began == sorted(rig.service.began), "jobs begin in their order"
        assert rig.service.most <= concurrency
        assert rig.service.active_jobs == 0
        assert rig.lost == []
        await rig.lanes.close()

    asyncio.run(run())


@settings(max_examples=80, deadline=None)
@given(
    kinds=st.lists(st.sampled_from([INSTANT, LONG, SWALLOW, PAUSE]), min_size=1, max_size=25),
    stops=st.lists(st.tuples(st.integers(0, 24), st.sampled_from(["cancelled", "timeout", "drain"])), max_size=30),
    concurrency=st.integers(1, 6),
    steps=st.integers(0, 4),
)
def test_a_stop_hits_its_job_and_no_neighbour(tmp_path_factory, kinds, stops, concurrency, steps) -> None:
    async def run() -> None:
        rig = Rig(tmp_path_factory.getbasetemp(), concurrency)
        claims = rig.assign(kinds)
        told = set()
        for number, reason in stops:
            for _ in range(steps):
                await asyncio.sleep(0)
            if number < len(claims) and rig.lanes.stop(claims[number], reason):
                told.add(number)
        await rig.settle()
        assert not rig.lanes.stop((10_000, 7), "cancelled")
        rig.service.gate.set()
        await rig.idle()
        ends = rig.ends()
        assert [number for number, _ in ends] == list(range(len(kinds))), "each ends once"
        for number, end in ends:
            if number not in told:
                assert end == "done"
            elif kinds[number] == LONG:
                assert end in ("cancelled", "failed")
        after = rig.assign([LONG, PAUSE, INSTANT])
        await rig.idle()
        assert [end for end in rig.ends() if end[0] >= after[0][0]] == [(claim[0], "done") for claim in after]
        await rig.lanes.close()

    asyncio.run(run())


def test_what_cannot_be_told_as_it_is_ends_its_job_all_the_same_and_no_lane(tmp_path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path, 2)
        rig.assign([LEAVE, MUTE, ODD, USES_NAMES, USES_WORDS, INSTANT, PAUSE])
        await rig.idle()
        assert rig.ends() == [(number, "failed") for number in range(5)] + [(5, "done"), (6, "done")]
        assert rig.lost == []
        told = {job.id: job for frame in rig.frames for job in frame.failed}
        assert "Mute, which cannot be told: RuntimeError" in told[1].error.message
        assert told[2].error.message == "OSError: no file \\udcff.png"
        assert [told[number].retry for number in (3, 4)] == [False, False]
        for frame in rig.frames:
            codec.encode(frame)
        await rig.lanes.close()

    asyncio.run(run())


def test_a_cancellable_service_is_told_and_only_then_cancelled(tmp_path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path, 2, Interruptible)
        first, second = rig.assign([LONG, LONG])
        await rig.settle()
        rig.lanes.stop(first, "cancelled")
        rig.lanes.stop(first, "cancelled")
        await rig.settle()
        assert rig.service.told == [first[0]]
        assert rig.ends() == [], "not reported before it has stopped"
        async with asyncio.timeout(5):
            while not rig.ends():
                await asyncio.sleep(0.01)
        assert rig.ends() == [(first[0], "cancelled")]
        rig.service.gate.set()
        await rig.idle()
        assert rig.ends() == [(first[0], "cancelled"), (second[0], "done")]
        await rig.lanes.close()

    asyncio.run(run())


def test_an_endless_row_of_instant_jobs_lets_the_loop_breathe(tmp_path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path, 4)
        rig.assign([INSTANT] * 50_000)
        turns = 0
        while rig.lanes.busy:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 5
        assert rig.service.most == 1
        assert len(rig.ends()) == 50_000
        await rig.lanes.close()

    asyncio.run(run())


class Hand:
    """A clock that stands until it is set."""

    now_ns = 1_000

    def monotonic_ns(self) -> int:
        return self.now_ns


def test_what_ends_in_one_turn_of_the_loop_leaves_in_one_frame_however_long_it_waited(tmp_path, monkeypatch) -> None:
    async def run() -> None:
        hand = Hand()
        monkeypatch.setattr(lanes, "time", hand)
        rig = Rig(tmp_path, 3)
        claims = rig.assign([LONG, LONG, LONG])
        await rig.settle()
        hand.now_ns += 2 * lanes.TURN_NS_MAX
        rig.service.gate.set()
        await rig.idle()
        await rig.lanes.close()
        assert [[(job.id, job.epoch) for job in frame.done] for frame in rig.frames] == [claims]

    asyncio.run(run())


def test_an_outcome_that_none_can_join_leaves_at_once(tmp_path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path, 3)
        rig.outbox._call_soon = lambda flush: None
        rig.assign([LONG, LONG, LONG])
        rig.service.gate.set()
        await rig.idle()
        assert len(rig.frames) == 1
        rig.assign([INSTANT])
        await rig.idle()
        await rig.lanes.close()
        assert [len(frame.done) for frame in rig.frames] == [3, 1]

    asyncio.run(run())
