"""What the codec costs: the frames of the hot path, 256 jobs each, there and back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from empd.job import AssignedJob, AssignGroup, JobGroup, JobOptions, Submit
from empd.result import DoneJob, FinishedGroup, FinishedJob, Results
from empd.wire import codec
from empd.wire.frames import Accepted, Assign, Done

JOBS = 256
PAYLOAD = bytes(100)
OPTIONS = msgspec.Raw(msgspec.msgpack.encode(JobOptions(service="noop")))
FIRST = 7 << 32
EPOCH = 3 << 32

FRAMES = {
    "submit": (Submit(1, 1, [JobGroup(OPTIONS, [PAYLOAD] * JOBS)]), codec.decode_client_frame),
    "assign": (
        Assign([AssignGroup(OPTIONS, 1800.0, [AssignedJob(FIRST + i, EPOCH + i, PAYLOAD) for i in range(JOBS)])]),
        codec.decode_for_worker,
    ),
    "done": (
        Done(1, [DoneJob(FIRST + i, EPOCH + i, b"\x81\xa1x\x01") for i in range(JOBS)]),
        codec.decode_worker_frame,
    ),
    "results": (
        Results(
            7, "cpu0", 1, [FinishedGroup(OPTIONS, [FinishedJob(FIRST + i, 0, b"\x01", 1, 2, 1) for i in range(JOBS)])]
        ),
        codec.decode_for_client,
    ),
    "accepted": (Accepted(1), codec.decode_for_client),
}


@pytest.mark.parametrize("name", FRAMES)
def test_encode(benchmark: Any, name: str) -> None:
    frame, decode = FRAMES[name]
    data = benchmark(codec.encode, frame)
    assert type(decode(data)) is type(frame)


@pytest.mark.parametrize("name", FRAMES)
def test_decode(benchmark: Any, name: str) -> None:
    frame, decode = FRAMES[name]
    data = codec.encode(frame)
    assert codec.encode(benchmark(decode, data)) == data


def test_decode_options(benchmark: Any) -> None:
    data = bytes(OPTIONS)
    assert benchmark(codec.decode_options, data).service == "noop"
