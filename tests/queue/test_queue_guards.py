"""What keeps a job with one holder, and one end: each guard by itself, so that taking it out shows."""

from __future__ import annotations

import pytest
from queue_world import ALPHA, Bench, DoneFrame, alpha, policy

from empd.errors import FailureClass
from empd.job import State
from empd.lifecycle import Exit
from empd.queue.machine import DOUBT_CHARS_MAX, StaleState
from empd.queue.requests import listing
from empd.queue.rows import Kind, decode_body
from empd.result import DoneJob, FailedJob, JobError
from empd.wire.frames import JobFilter


def held(**limits: object) -> tuple[Bench, int, int]:
    """A bench, and the id and epoch of the job that its worker holds."""
    bench = Bench(policy(**limits))
    bench.say(ALPHA)
    [job] = bench.run()
    return bench, job.id, job.epoch


@pytest.mark.parametrize("how", ["done", "failed", "cancelled"])
def test_an_outcome_under_a_stale_epoch_writes_nothing_and_is_counted(how: str) -> None:
    bench, job_id, epoch = held()
    stale = epoch - 1
    failed = FailedJob(job_id, stale, JobError(FailureClass.INTERNAL, "no"), False)
    frame = {
        "done": DoneFrame(done=[DoneJob(job_id, stale, b"r")]),
        "failed": DoneFrame(failed=[failed]),
        "cancelled": DoneFrame(cancelled=[(job_id, stale)]),
    }[how]
    bench.queue.done(bench.worker, frame, bench.now)
    assert not bench.queue.pending
    assert bench.queue.stale_completions == 1
    assert bench.jobs[job_id].state is State.ASSIGNED


def test_a_job_that_is_said_twice_in_a_frame_ends_once() -> None:
    bench, job_id, epoch = held()
    bench.queue.done(bench.worker, DoneFrame(done=[DoneJob(job_id, epoch, b"r")] * 2), bench.now)
    bench.commit()
    assert bench.ends[job_id] == 1
    assert bench.queue.stale_completions == 1


def test_what_an_attempt_keeps_is_fenced_by_its_epoch_and_version() -> None:
    bench, job_id, epoch = held()
    with pytest.raises(StaleState):
        bench.queue.checkpoint(bench.worker, (job_id, epoch - 1), b"c", bench.now)
    with pytest.raises(StaleState):
        bench.queue.set_state(bench.worker, (job_id, epoch - 1), "cursor", 0, b"s", bench.now)
    assert bench.queue.set_state(bench.worker, (job_id, epoch), "cursor", 0, b"s", bench.now) == 1
    with pytest.raises(StaleState, match="version 1"):
        bench.queue.set_state(bench.worker, (job_id, epoch), "cursor", 0, b"t", bench.now)


def test_an_assignment_that_the_worker_never_got_is_no_attempt() -> None:
    bench = Bench()
    bench.say(alpha(queue_timeout_s=5.0))
    bench.claim("w0", lose=True)
    bench.advance(6)
    bench.tick()  # the limit of the wait, which counts no more once the job has begun
    [job] = bench.jobs.values()
    assert (job.state, job.attempts) == (State.ASSIGNED, 1)
    bench.connect(bench.workers["w0"])
    assert (job.state, job.attempts) == (State.WAITING, 0)
    bench.tick()
    bench.commit()
    assert not bench.jobs, "it has not begun, and waited for too long"


def test_an_attempt_that_was_cut_short_is_one() -> None:
    bench, job_id, epoch = held()
    bench.queue.abandoned(bench.worker, [(job_id, epoch)], bench.now)
    assert (bench.jobs[job_id].state, bench.jobs[job_id].attempts) == (State.WAITING, 1)


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
def test_a_doubt_stays_with_its_job_over_attempts_restarts_and_trims_to_its_end(end: str) -> None:
    bench, job_id, epoch = held()

    def shown() -> list[str]:
        page, _ = listing(bench.queue.state, JobFilter())
        return [status.doubt for status in page]

    assert shown() == [""]
    bench.queue.checkpoint(bench.worker, (job_id, epoch), b"1", bench.now, "d" * 5_000)
    assert shown() == ["d" * DOUBT_CHARS_MAX]
    bench.queue.checkpoint(bench.worker, (job_id, epoch), b"2", bench.now, "twice?")
    bench.queue.checkpoint(bench.worker, (job_id, epoch), b"3", bench.now)
    assert shown() == ["twice?"]
    bench.kill_worker("w0", Exit.CRASHED)
    bench.commit()
    bench.trim(1.0)
    bench.kill_broker()
    assert shown() == ["twice?"]
    bench.start_worker("w0", 1, 0)
    [job] = bench.run()
    claim = (job.id, job.epoch)
    failed = FailedJob(*claim, JobError(FailureClass.INTERNAL, "no"), False)
    if end == "cancelled":
        bench.queue.cancel([job_id], bench.now)
    frames = {"done": [[DoneJob(*claim, b"r")]], "failed": [[], [failed]], "cancelled": [[], [], [claim]]}
    bench.queue.done(bench.worker, DoneFrame(*frames[end]), bench.now)
    bench.commit()
    results = decode_body(Kind.RESULTS, next(row[4] for row in bench.journal if row[2] == Kind.RESULTS))
    assert [job.doubt for group in results.groups for job in group.jobs] == ["twice?"]


def test_a_job_that_loses_its_host_max_host_losses_times_is_a_dead_letter() -> None:
    bench, job_id, _ = held(max_host_losses=2)
    bench.kill_worker("w0", Exit.HOST_LOST)
    assert bench.jobs[job_id].state is State.WAITING
    bench.start_worker("w0", 1, 0)
    bench.run()
    bench.kill_worker("w0", Exit.HOST_LOST)
    assert bench.jobs[job_id].state is State.DEAD  # type: ignore[comparison-overlap]  # the second loss buried it


def test_a_worker_that_has_to_abandon_gets_no_claims_before_it_has() -> None:
    bench, job_id, epoch = held()
    bench.say(ALPHA)
    worker, abandon = bench.queue.hello("w0", 1, [(job_id, epoch), (job_id, epoch - 1)], bench.now)
    assert abandon == [(job_id, epoch - 1)]
    assert bench.queue.claim(worker, bench.now) is None
    bench.queue.abandoned(worker, abandon, bench.now)
    assert bench.queue.claim(worker, bench.now) is not None


def test_what_a_worker_turns_out_not_to_hold_waits_again() -> None:
    bench, job_id, _ = held()
    bench.queue.hello("w0", 1, [], bench.now)
    bench.commit()
    assert bench.jobs[job_id].state is State.WAITING


@pytest.mark.parametrize("drained", ["*", "w0"])
def test_a_drained_worker_gets_no_claims(drained: str) -> None:
    bench = Bench()
    bench.say(ALPHA)
    bench.queue.operate([drained], bench.now)
    assert bench.queue.claim(bench.worker, bench.now) is None
    bench.queue.operate([], bench.now)
    assert bench.queue.claim(bench.worker, bench.now) is not None


def test_payloads_are_bounded_together() -> None:
    bench = Bench(policy(queue_bytes_max=100))
    assert bench.say(ALPHA, bytes(90)).refused == []
    [refusal] = bench.say(ALPHA, bytes(20)).refused
    assert refusal.failure == FailureClass.UNAVAILABLE
    assert bench.queue.state.payload_bytes == 90
