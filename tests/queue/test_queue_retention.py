"""Retention: what is past it goes, in the order in which it is due, however much else there is."""

from __future__ import annotations

from typing import Any, NoReturn

from queue_world import ALPHA, Bench, alpha, policy

from empd.clock import NS_PER_S
from empd.errors import FailureClass
from empd.job import JobOptions, State
from empd.lifecycle import Exit
from empd.queue import deadlines
from empd.queue.policy import ServicePolicy, WorkerClass

HOUR_S = 3600.0


class Unscanned(dict[Any, Any]):
    """A table in which things may be looked up, and not gone through."""

    def _scan(self) -> NoReturn:
        raise AssertionError("retention goes through everything")

    __iter__ = keys = values = items = _scan  # type: ignore[assignment]


def dead_box(**limits: Any) -> Bench:
    return Bench(policy(max_crashes=1, dead_keep_ns=int(HOUR_S) * NS_PER_S, **limits), slots=64)


def kill_one(bench: Bench) -> int:
    """A job that comes and dies now; its id."""
    known = set(bench.jobs)
    bench.say(ALPHA)
    [job_id] = bench.jobs.keys() - known
    bench.start_worker("w0", 64, 0)
    bench.run()
    bench.kill_worker("w0", Exit.CRASHED)
    assert bench.jobs[job_id].state is State.DEAD
    return job_id


def forget(bench: Bench) -> None:
    bench.queue.forget(bench.now)
    bench.commit()


def test_it_looks_only_at_what_is_due() -> None:
    bench = dead_box(idempotency_keep_ns=int(HOUR_S) * NS_PER_S)
    kill_one(bench)
    bench.submit([(ALPHA, 1)], ["key"])
    bench.deliver()
    bench.cancel(0)
    bench.commit()
    state = bench.queue.state
    state.jobs, state.keys, state.sessions = Unscanned(state.jobs), Unscanned(state.keys), Unscanned(state.sessions)
    bench.advance(HOUR_S / 2)
    assert deadlines.forgotten(state, bench.policy, bench.now) == []


def test_dead_letters_go_in_the_order_of_their_deaths() -> None:
    bench = dead_box()
    ids = []
    for _ in range(3):
        ids.append(kill_one(bench))
        bench.advance(HOUR_S / 4)
    bench.advance(HOUR_S / 4 + 1)
    forget(bench)
    assert list(bench.jobs) == ids[1:]
    assert bench.queue.state.dead == 2


def reconfigured(bench: Bench, **changes: Any) -> None:
    """The configuration is read anew: a broker with another policy takes over."""
    bench.policy = policy(**{"unmatchable_keep_ns": int(HOUR_S) * NS_PER_S, **changes})
    bench.kill_broker()


def test_a_job_whose_workers_are_no_longer_configured_becomes_a_dead_letter_with_the_reason() -> None:
    bench = Bench()
    bench.say(alpha(requirements={"memory_gb": 8}), b"p", b"p")
    bench.say(JobOptions(service="beta"))
    first, second, other = bench.jobs
    only_beta = {"services": {"beta": ServicePolicy()}, "classes": (WorkerClass(("beta",), {}),)}
    reconfigured(bench, **only_beta)
    forget(bench)
    bench.advance(HOUR_S - 1)
    forget(bench)
    assert [bench.jobs[job_id].state for job_id in (first, second, other)] == [State.WAITING] * 3
    bench.advance(2)
    forget(bench)
    for job_id in (first, second):
        job = bench.jobs[job_id]
        assert job.state is State.DEAD
        assert job.extra is not None
        assert job.extra.error is not None
        assert job.extra.error.failure == FailureClass.UNMATCHABLE
        assert "alpha" in job.extra.error.message
    assert bench.jobs[other].state is State.WAITING
    assert bench.queue.state.dead == 2
    bench.check()
    # Retried when the workers are configured again, it runs.
    reconfigured(bench)
    assert bench.queue.retry([first], bench.now) == [first]
    bench.commit()
    bench.workers.clear()
    bench.start_worker("w1", 2, 0)
    bench.claim("w1")
    assert bench.jobs[first].state is State.ASSIGNED


def test_a_configuration_that_is_put_right_in_time_ends_nothing() -> None:
    bench = Bench()
    bench.say(alpha(requirements={"memory_gb": 100}))
    [job_id] = bench.jobs
    small = {"classes": (WorkerClass(("alpha", "beta"), {"memory_gb": 24}, open_ended=False),)}
    for _ in range(3):
        reconfigured(bench, **small)
        forget(bench)
        bench.advance(HOUR_S * 0.9)
        forget(bench)
        bench.queue.options.replace_policy(policy(unmatchable_keep_ns=int(HOUR_S) * NS_PER_S))
        forget(bench)
        bench.queue.options.replace_policy(bench.policy)
        bench.advance(HOUR_S * 0.9)
        forget(bench)
        assert bench.jobs[job_id].state is State.WAITING


def test_of_too_many_dead_letters_the_oldest_go() -> None:
    bench = dead_box(dead_jobs_max=2)
    ids = [kill_one(bench) for _ in range(5) if bench.advance(1) is None]
    forget(bench)
    assert list(bench.jobs) == ids[3:]


def test_a_dead_letter_that_was_retried_and_died_again_is_kept_from_its_second_death_on() -> None:
    bench = dead_box()
    job_id = kill_one(bench)
    bench.advance(HOUR_S * 0.9)
    assert bench.queue.retry([job_id], bench.now) == [job_id]
    forget(bench)
    bench.start_worker("w0", 1, 0)
    bench.run()
    bench.advance(HOUR_S * 0.2)
    forget(bench)
    assert bench.jobs[job_id].state is State.ASSIGNED, "the retention of its first death is over"
    bench.kill_worker("w0", Exit.CRASHED)
    bench.advance(HOUR_S * 0.9)
    forget(bench)
    assert job_id in bench.jobs
    bench.advance(HOUR_S * 0.2)
    forget(bench)
    assert job_id not in bench.jobs


def test_a_death_is_remembered_over_trims_and_restarts() -> None:
    bench = dead_box()
    early = kill_one(bench)
    bench.say(alpha(timeout_s=0.0))
    [late] = bench.jobs.keys() - {early}
    bench.start_worker("w0", 64, 0)
    bench.run()
    bench.advance(HOUR_S / 2)  # it ran for long before it died
    bench.kill_worker("w0", Exit.CRASHED)
    bench.trim(1.0)
    bench.kill_broker()
    bench.advance(HOUR_S / 2 + 1)
    forget(bench)
    assert list(bench.jobs) == [late]
    assert early not in bench.jobs


def test_retries_of_a_dead_letter_again_and_again_take_no_memory() -> None:
    bench = dead_box()
    job_id = kill_one(bench)
    for _ in range(2_000):
        bench.queue.retry([job_id], bench.now)
        bench.start_worker("w0", 1, 0)
        bench.run()
        bench.kill_worker("w0", Exit.CRASHED)
        bench.advance(0.001)
    forget(bench)
    assert len(bench.queue.state.deaths) < 1_100
    assert job_id in bench.jobs


def test_a_key_lives_its_retention_after_the_end_of_its_job_over_trims_and_restarts() -> None:
    bench = dead_box(idempotency_keep_ns=int(HOUR_S) * NS_PER_S)
    bench.submit([(ALPHA, 1)], ["early"])
    bench.submit([(ALPHA, 1)], ["late"])
    bench.submit([(ALPHA, 1)], ["open"])
    bench.deliver()
    bench.acknowledge()
    bench.cancel(0)
    bench.advance(HOUR_S / 2)
    bench.cancel(1)
    bench.trim(1.0)
    bench.kill_broker()
    bench.advance(HOUR_S / 2 - 1)
    forget(bench)
    assert set(bench.queue.state.keys) == {"early", "late", "open"}
    bench.advance(2)
    forget(bench)
    assert set(bench.queue.state.keys) == {"late", "open"}
    bench.advance(HOUR_S)
    forget(bench)
    assert set(bench.queue.state.keys) == {"open"}


def test_a_name_that_was_used_again_is_kept_by_its_new_job() -> None:
    bench = dead_box(idempotency_keep_ns=int(HOUR_S) * NS_PER_S)
    bench.submit([(ALPHA, 1)], ["name"])
    bench.deliver()
    bench.acknowledge()
    bench.cancel(0)
    bench.queue.state.keys["name"].ended_ns += NS_PER_S  # as after a forgetting and a second job
    bench.advance(HOUR_S + 0.5)
    forget(bench)
    assert "name" in bench.queue.state.keys


def test_a_session_goes_when_nobody_spoke_in_it_and_no_job_of_it_is_open() -> None:
    bench = Bench(policy(session_keep_ns=int(HOUR_S) * NS_PER_S))
    bench.kill_worker("w0", Exit.CLEAN)
    bench.say(ALPHA)
    [job_id] = bench.jobs
    idle = bench.queue.open_session(b"token", "idle", bench.now).number
    spoken = bench.queue.open_session(b"token", "spoken", bench.now)
    bench.advance(HOUR_S / 2)
    spoken.seen_mono_ns = bench.mono_ns
    bench.trim(1.0)
    bench.advance(HOUR_S / 2 + 1)
    forget(bench)
    assert idle not in bench.queue.state.sessions
    assert {bench.session_number, spoken.number} <= set(bench.queue.state.sessions)
    bench.queue.cancel([job_id], bench.now)
    bench.trim(1.0)
    bench.kill_broker()
    for _ in range(3):
        bench.advance(HOUR_S)
        forget(bench)
    assert not bench.queue.state.sessions
