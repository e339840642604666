"""A claim costs the same beside ten waiting jobs and beside thousands, whoever can run them: counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import msgspec
import pytest
from queue_world import ALPHA, Bench, alpha

from empd.job import State
from empd.queue.state import Offer

MINE = 6
FEW, MANY = 10, 4_000
STEPS_MORE_MAX = 100
"""A heap of thousands is deeper than one of ten; a look at each job would be many thousands of steps."""


class Unscanned(dict[Any, Any]):
    """A table in which things may be looked up, and not gone through."""

    def _scan(self) -> NoReturn:
        raise AssertionError("a claim goes through all jobs")

    __iter__ = keys = values = items = _scan  # type: ignore[assignment]


def beta(number: int) -> bytes:
    """Jobs of another service."""
    return msgspec.msgpack.encode(msgspec.structs.replace(ALPHA, service="beta"))


def other_requirements(number: int) -> bytes:
    """Jobs of the asker's service that it cannot run, in many groups."""
    return alpha(requirements={"memory_gb": 100 + number % 500})


def own(number: int) -> bytes:
    """Jobs like those that it will run, in the same line."""
    return alpha(priority=90)


def of_many_priorities(number: int) -> bytes:
    """Jobs that the asker could run, behind those that it will."""
    return alpha(priority=number % 50)


def not_yet(number: int) -> bytes:
    """Jobs whose time has not come."""
    return alpha(not_before=4e9)


def steps_of(call: Callable[[], object]) -> int:
    """How many instructions of Python it runs."""
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(before)
    return steps


def claims_beside(others: int, kind: Callable[[int], bytes]) -> list[int]:
    """The steps of each of several claims of one job, with so many others waiting."""
    bench = Bench(slots=1)
    for number in range(others):
        bench.say(kind(number), commit=False)
    for _ in range(MINE):
        bench.say(alpha(priority=90))
    bench.queue.offer(bench.worker, 1, {"alpha": Offer(1)}, "")
    state = bench.queue.state
    state.jobs = Unscanned(state.jobs)
    found = []
    for _ in range(MINE):
        found.append(steps_of(lambda: bench.queue.claim(bench.worker, bench.now)))
        [job] = bench.worker.held.values()
        assert (job.state, job.options.spec.priority) == (State.ASSIGNED, 90)
        bench.queue.pending.clear()
        del bench.worker.held[job.id]  # it is done, as far as this claim's cost goes
    return found


@pytest.mark.parametrize("kind", [own, beta, other_requirements, of_many_priorities, not_yet])
def test_a_claim_looks_at_no_more_jobs_however_many_wait(kind: Callable[[int], bytes]) -> None:
    few, many = claims_beside(FEW, kind), claims_beside(MANY, kind)
    assert all(more <= less + STEPS_MORE_MAX for less, more in zip(few, many, strict=True)), (few, many)


def test_looking_at_each_would_be_seen() -> None:
    bench = Bench()
    for number in range(MANY):
        bench.say(beta(number), commit=False)
    assert steps_of(lambda: [job for job in bench.jobs.values() if job.state is State.WAITING]) > MANY
