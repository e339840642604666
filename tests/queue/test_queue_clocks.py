"""Limits count steady time: no setting of the wall clock, no trim, no restart and no reboot makes one pass early, nor
puts one off for as long as the clock was set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from queue_world import Bench, alpha, policy

from empd.clock import NS_PER_S
from empd.job import Cause, Outcome, State
from empd.lifecycle import Exit

HOUR_S = 3600
Happening = Callable[[Bench], None]


def step_trim_restart(bench: Bench, step_s: float) -> None:
    bench.set_wall_clock(step_s)
    bench.trim(1.0)
    bench.kill_broker()


def trim_step_restart(bench: Bench, step_s: float) -> None:
    """The step comes after the carry, so that the row which ties the clocks anew is read without the older one."""
    bench.trim(1.0)
    bench.set_wall_clock(step_s)
    bench.kill_broker()


def trim_restart_with_step(bench: Bench, step_s: float) -> None:
    """Nobody is there to see the step, and the first row that tells of the clocks is the one after it."""
    bench.trim(1.0)
    bench.kill_broker(clock_step_s=step_s)


def step_trim_reboot(bench: Bench, step_s: float) -> None:
    bench.set_wall_clock(step_s)
    bench.trim(1.0)
    bench.kill_broker(host_too=True)


def step_restart_trim_restart(bench: Bench, step_s: float) -> None:
    bench.kill_broker(clock_step_s=step_s)
    bench.trim(1.0)
    bench.kill_broker()


def restart_trim_before_the_job_restart(bench: Bench, step_s: float) -> None:
    """The job's own row is left, and the first row after it that tells of the clocks is of the broker that came after
    the step."""
    [job] = bench.jobs.values()
    bench.kill_broker(clock_step_s=step_s)
    bench.trim_to(job.order - 1)
    bench.kill_broker()


def late_row_before_the_carry(bench: Bench, step_s: float) -> None:
    """Rows that are left before the carry are older than the row which ties the clocks."""
    bench.set_wall_clock(step_s)
    bench.say(alpha())
    bench.trim(0.0)
    bench.kill_broker()


HAPPENINGS = [
    step_trim_restart, trim_step_restart, trim_restart_with_step, step_trim_reboot, step_restart_trim_restart,
    late_row_before_the_carry, restart_trim_before_the_job_restart,
]  # fmt: skip


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("limit", ["queue_timeout_s", "total_timeout_s"])
def test_a_waiting_job_expires_when_its_limit_has_passed(limit: str, happening: Any, step_s: int) -> None:
    bench = Bench()
    for name in list(bench.workers):  # nobody runs it
        bench.kill_worker(name, Exit.CLEAN)
    bench.say(alpha(**{limit: 100.0}))
    [job_id] = bench.jobs
    bench.advance(60)
    happening(bench, step_s)
    bench.advance(39)
    bench.tick()
    assert job_id in bench.jobs, "a second is left of its limit"
    bench.advance(2)
    bench.tick()
    assert bench.outcomes[job_id] == Outcome.EXPIRED


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("happening", [each for each in HAPPENINGS if each is not step_trim_reboot])
def test_a_run_is_stopped_when_its_limit_has_passed(happening: Any, step_s: int) -> None:
    bench = Bench()
    bench.say(alpha(timeout_s=100.0))
    [job] = bench.run()
    bench.advance(60)
    happening(bench, step_s)
    job = bench.jobs[job.id]
    bench.advance(39)
    bench.tick()
    assert job.state is State.ASSIGNED, "a second is left of its limit"
    bench.advance(2)
    bench.tick()
    assert job.state is State.CANCELLING  # type: ignore[comparison-overlap]  # the tick moved it


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_back_off_ends_when_it_has_passed(happening: Any, step_s: int) -> None:
    bench = Bench(policy(backoff_ns=100 * NS_PER_S, backoff_max_ns=100 * NS_PER_S))
    bench.say(alpha())
    [job] = bench.run()
    bench.fail(job, cause=Cause.UPSTREAM)
    bench.advance(60)
    happening(bench, step_s)
    job = bench.jobs[job.id]
    bench.advance(39)
    bench.tick()
    assert job.state is State.DELAYED
    bench.advance(2)
    bench.tick()
    assert job.state is State.WAITING  # type: ignore[comparison-overlap]  # the tick moved it


def test_a_small_step_is_noticed_as_well() -> None:
    bench = Bench()
    bench.set_wall_clock(0.5)
    bench.say(alpha(total_timeout_s=2.0))
    bench.set_wall_clock(-0.5)
    bench.advance(1.8)
    bench.tick()
    assert bench.jobs
    bench.advance(0.3)
    bench.tick()
    assert not bench.jobs


def test_time_off_counts_and_a_clock_that_is_behind_after_a_boot_does_not_put_limits_off() -> None:
    """A board without a battery starts in the past, and is set when the network is there."""
    bench = Bench()
    bench.say(alpha(total_timeout_s=1000.0), b"p")
    [job_id] = bench.jobs
    bench.kill_broker(host_too=True, offline_s=300)
    bench.kill_broker(host_too=True, offline_s=300, clock_step_s=-10 * HOUR_S)  # these 300 s cannot be seen
    bench.set_wall_clock(10 * HOUR_S)
    bench.advance(699)
    bench.tick()
    assert job_id in bench.jobs
    bench.advance(2)
    bench.tick()
    assert job_id not in bench.jobs
