"""The outbox: frames within their bounds, numbered without gaps, kept until settled, forgotten when unwanted."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from empd.payload import FRAME_BYTES_MAX, INLINE_BYTES_MAX
from empd.wire import codec, frames
from empd.wire.frames import FailedJob, JobError
from empd.worker.outbox import JOBS_PER_FRAME_MAX, Outbox


class Wire:
    """Takes frames, and runs what was put off when told to."""

    def __init__(self) -> None:
        self.frames: list[frames.Frame] = []
        self.later: list[Callable[[], None]] = []
        self.outbox = Outbox(self.take, self.later.append)
        self.outbox.open = True

    def take(self, frame: frames.Frame) -> bool:
        assert len(codec.encode(frame)) <= FRAME_BYTES_MAX
        self.frames.append(frame)
        return True

    def turn(self) -> None:
        later, self.later[:] = self.later[:], []
        for callback in later:
            callback()


sizes = st.lists(st.integers(0, INLINE_BYTES_MAX), max_size=60)


@given(sizes=sizes, turns=st.sets(st.integers(0, 59)))
def test_every_outcome_leaves_once_in_order_within_the_frame_limit(sizes: list[int], turns: set[int]) -> None:
    wire = Wire()
    for number, size in enumerate(sizes):
        wire.outbox.completed((number, 1), b"r" * size, None)
        if number in turns:
            wire.turn()
    wire.turn()
    assert [job.id for frame in wire.frames for job in frame.done] == list(range(len(sizes)))
    assert [frame.number for frame in wire.frames] == list(range(1, len(wire.frames) + 1))


def test_large_evidence_counts_in_bytes() -> None:
    wire = Wire()
    for number in range(200):
        error = JobError("internal", "ü" * 2_000, "😀" * 8_000)
        wire.outbox.failed(FailedJob(number, 1, error, True))
    wire.turn()
    assert sum(len(frame.failed) for frame in wire.frames) == 200


def test_a_full_frame_leaves_at_once_and_the_rest_at_the_turn() -> None:
    wire = Wire()
    for number in range(JOBS_PER_FRAME_MAX + 1):
        wire.outbox.cancelled((number, 1))
    assert len(wire.frames) == 1
    wire.turn()
    assert len(wire.frames) == 2


@given(count=st.integers(1, 10), settled=st.integers(0, 12), dropped=st.sets(st.integers(0, 9)))
def test_what_is_not_settled_is_held_and_sent_again(count: int, settled: int, dropped: set[int]) -> None:
    wire = Wire()
    for number in range(count):
        wire.outbox.completed((number, 1), b"", None)
        wire.outbox.flush()
    wire.outbox.settle(settled)
    left = list(range(min(settled, count), count))
    assert [claim[0] for claim in wire.outbox.held()] == left
    found = wire.outbox.drop({(number, 1) for number in dropped})
    assert {claim[0] for claim in found} == dropped & set(left)
    wire.frames.clear()
    wire.outbox.resend()
    assert [job.id for frame in wire.frames for job in frame.done] == [n for n in left if n not in dropped]
    wire.outbox.settle(count)
    assert wire.outbox.empty


def test_while_closed_outcomes_wait_for_the_resend() -> None:
    wire = Wire()
    wire.outbox.open = False
    wire.outbox.completed((1, 1), b"", None)
    wire.outbox.abandoned((2, 1))
    wire.turn()
    assert wire.frames == []
    assert not wire.outbox.empty
    wire.outbox.open = True
    wire.outbox.resend()
    assert [type(frame) for frame in wire.frames] == [frames.Done, frames.Abandoned]


def test_who_watches_a_claim_is_told_once_whether_its_outcome_counts() -> None:
    wire = Wire()
    told: dict[int, bool] = {}
    for number in range(4):
        wire.outbox.watched[(number, 1)] = lambda counts, number=number: told.setdefault(number, counts)  # type: ignore[misc]
        wire.outbox.completed((number, 1), b"", None)
        wire.outbox.flush()
    wire.outbox.settle(2)
    assert told == {0: True, 1: True}
    wire.outbox.drop({(2, 1), (9, 9)})
    assert told == {0: True, 1: True, 2: False}
    wire.outbox.settle(4)
    assert told == {0: True, 1: True, 2: False, 3: True}
    assert not wire.outbox.watched
