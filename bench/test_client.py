"""What the client costs per job: the conversation alone, from values to frames and from frames to results."""

from __future__ import annotations

from typing import Any

import msgspec

from empd.client.conversation import Conversation
from empd.client.handle import Ending, Handle
from empd.client.jobs import JobHandle
from empd.client.options import OptionsEncoder
from empd.payload import encode_value
from empd.result import FinishedGroup, FinishedJob, Results
from empd.wire import codec, frames

JOBS = 256
PAYLOAD = {"prompt": "a lighthouse in a storm", "seed": 12345, "steps": 30, "size": [1024, 1024]}
OPTIONS = OptionsEncoder().encode("noop", "msgpack", {})


def greeted() -> Conversation:
    """A conversation that has its session."""
    conversation = Conversation("bench")
    conversation.connected(0)
    conversation.outgoing(0)
    welcome = frames.Welcome(frames.VERSION, 1, b"t", "", 1, 0, 1, 1 << 20, 1 << 16, "", "", "")
    conversation.receive(codec.encode(welcome), 0)
    return conversation


def submit(conversation: Conversation, first: int) -> list[JobHandle]:
    """256 jobs into frames, and acknowledged."""
    handles = []
    for _ in range(JOBS):
        handle = JobHandle(0, None)
        conversation.submit(handle, OPTIONS, encode_value(PAYLOAD)[1])  # type: ignore[arg-type]
        handles.append(handle)
    conversation.seal()
    assert conversation.outgoing(0)
    conversation.receive(codec.encode(frames.Accepted(first)), 0)
    return handles


def results(handles: list[Any]) -> bytes:
    """The frame that completes them."""
    value = msgspec.msgpack.encode({"value": 9})
    jobs = [FinishedJob(handle.number, 0, value, 1, 2, 1) for handle in handles]
    return codec.encode(Results(1, "cpu0", 3, [FinishedGroup(OPTIONS, jobs)]))


def test_submit_a_batch(benchmark: Any) -> None:
    conversation = greeted()
    numbers = iter(range(1, 1 << 30))

    def one_batch() -> None:
        submit(conversation, next(numbers))
        conversation.open.clear()

    benchmark(one_batch)
    assert conversation.flushed


def test_deliver_a_batch(benchmark: Any) -> None:
    conversation = greeted()
    numbers = iter(range(1, 1 << 30))

    def ready() -> tuple[tuple[Any, ...], dict[str, Any]]:
        handles = submit(conversation, next(numbers))
        return (handles, results(handles)), {}

    def deliver(handles: list[JobHandle], data: bytes) -> None:
        conversation.receive(data, 0)
        for handle in handles:
            assert handle.value(bytes) == {"value": 9}  # type: ignore[arg-type]

    benchmark.pedantic(deliver, setup=ready, rounds=200)


def test_ending_of_one_handle(benchmark: Any) -> None:
    job = FinishedJob(1, 0, b"\x01", 1, 2, 1)

    def end() -> Handle:
        handle = Handle(1)
        handle.finished, handle.ending = job, Ending()
        return handle

    assert benchmark(end).ended
