"""Retention: what is past it goes, in the order in which it is due, however much else there is."""

from __future__ import annotations

from typing import Any, NoReturn

from queue_world import ALPHA, Bench, alpha, policy

from empd.clock import NS_PER_S
from empd.job import State
from empd.lifecycle import Exit
from empd.queue import deadlines

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
