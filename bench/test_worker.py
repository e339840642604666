"""What one no-op job costs in a worker, from the bytes of an Assign frame to the bytes of a Done frame."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from empd.asset import AssetConfig
from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.context import JobDetails
from empd.memory.arena import Arena
from empd.wire import codec, frames
from empd.worker.assets import Storage
from empd.worker.hosted import Hosted, Plan
from empd.worker.lanes import Lanes
from empd.worker.log import Log
from empd.worker.outbox import Outbox
from empd.worker.outcome import Outcomes
from empd.worker.port import Port

JOBS = 512
PAYLOAD = msgspec.msgpack.encode({"x": "y" * 90})


def assign_frame(number: int) -> bytes:
    raw = msgspec.Raw(msgspec.msgpack.encode(frames.JobOptions(service="noop")))
    jobs = [frames.AssignedJob(number * JOBS + i, number * JOBS + i, PAYLOAD) for i in range(JOBS)]
    return codec.encode(frames.Assign([frames.AssignGroup(raw, 1800.0, jobs)]))


class Bench:
    """The worker's own parts around a service, without sockets."""

    def __init__(self, directory: Path) -> None:
        self.done = 0
        self.loop = asyncio.get_running_loop()
        arena = Arena(directory / "spool", directory / "volatile")
        outbox = Outbox(self.take, self.loop.call_soon)
        outbox.open = True
        outcomes = Outcomes(outbox, arena, True, lambda now_ns: None)
        self.outbox = outbox
        self.lanes = Lanes(JOBS, outcomes, lambda error: None)
        unused: Any = None
        log = Log("error")
        port = Port(unused, unused, arena, unused, Storage("noop", AssetConfig(), directory, 0, log))
        plan = Plan("SimulationConnector", "", {"duration_s": 0}, (), (), JOBS)
        self.hosted = Hosted("noop", plan, Site(service="noop", max_concurrent_jobs=JOBS), port, log)
        self.details = JobDetails(service="noop")

    def take(self, frame: frames.Frame) -> bool:
        codec.encode(frame)
        if isinstance(frame, frames.Done):
            self.done += len(frame.done)
            self.outbox.settle(frame.number)
        return True

    def assign(self, data: bytes) -> None:
        for group in codec.decode_for_worker(data).groups:
            self.lanes.add([(self.hosted, self.details, group.timeout_s, job) for job in group.jobs])


@pytest.fixture
def frames_of_jobs() -> list[bytes]:
    return [assign_frame(number) for number in range(20)]


def test_noop_jobs_through_lanes(benchmark: Any, tmp_path: Path, frames_of_jobs: list[bytes]) -> None:
    async def run() -> int:
        bench = Bench(tmp_path)
        bench.hosted.build()
        await bench.hosted.open(lambda: None)
        for data in frames_of_jobs:
            bench.assign(data)
            while bench.lanes.busy:
                await asyncio.sleep(0)
        await bench.lanes.close()
        await bench.hosted.close()
        return bench.done

    assert "SimulationConnector" in registry.available()
    assert benchmark(lambda: asyncio.run(run())) == JOBS * len(frames_of_jobs)
    if benchmark.enabled:
        benchmark.extra_info["us_per_job"] = benchmark.stats["median"] / (JOBS * len(frames_of_jobs)) * 1e6
        assert benchmark.extra_info["us_per_job"] < 16
