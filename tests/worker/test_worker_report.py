"""Telemetry of a worker: whatever a connector says, what others say still leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import zmq

from empd.wire.telemetry import JobLog, JobProgress, Metrics, ServiceFacts, Telemetry
from empd.worker.report import Reporter

WAIT_MS = 30_000


def test_odd_texts_and_values_hold_nothing_up(tmp_path: Path) -> None:
    decode = msgspec.msgpack.Decoder(Telemetry).decode

    async def run(context: zmq.Context[zmq.Socket[bytes]]) -> None:
        pull = context.socket(zmq.PULL)
        pull.bind(f"ipc://{tmp_path}/t")
        reporter = Reporter(context, f"ipc://{tmp_path}/t", 1 << 20)

        def heard() -> Any:
            message: Any = Metrics("", 0, [])
            while isinstance(message, Metrics):
                assert pull.poll(WAIT_MS)
                message = decode(pull.recv())
            return message

        while not pull.poll(10):
            reporter.metrics("w", 1, [])  # what is said before there is a connection is dropped
        dropped = reporter.dropped
        job: Any = SimpleNamespace(job=SimpleNamespace(id=1, epoch=2), log_bytes=0)
        fraction: Any = object()
        reporter.log(job, "a file \udcff.png")
        reporter.progress(job, fraction, "never", 0, 0)
        reporter.facts("s", lambda: ServiceFacts("w", 1, "s", {"a": 1}))
        reporter.flush()
        reporter.progress(job, 0.5, "half of \udcff.png", 1, 2)
        reporter.flush()
        found = [heard() for _ in range(3)]
        assert [type(message) for message in found] == [JobLog, ServiceFacts, JobProgress]
        assert (found[0].text, found[2].message) == ("a file \\udcff.png", "half of \\udcff.png")
        assert reporter.dropped == dropped + 1
        reporter.close()

    context = zmq.Context()
    try:
        asyncio.run(run(context))
    finally:
        context.destroy(linger=0)
