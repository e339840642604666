"""What an adversary, a careless user or bad luck may bring to the queue; each of these once went wrong."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from queue_world import ALPHA, Bench, DoneFrame, alpha, policy

from empd.clock import NS_PER_S
from empd.errors import FailureClass
from empd.job import Cause, JobFilter, JobGroup, JobOptions, Outcome, State, Submit
from empd.lifecycle import Exit
from empd.payload import FRAME_BYTES_MAX, BlobRef
from empd.queue import deadlines, requests
from empd.queue.machine import Queue
from empd.queue.rows import Kind
from empd.queue.state import Offer, take_released
from empd.result import DoneJob
from empd.wire import frames

_encode = msgspec.msgpack.encode
_decode_submit = msgspec.msgpack.Decoder(Submit).decode


# --- what may stand in a frame ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout_s", "queue_timeout_s", "total_timeout_s", "not_before"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, -1.0])
def test_a_time_that_is_none_is_refused(name: str, value: float) -> None:
    bench = Bench()
    [refusal] = bench.say(alpha(**{name: value})).refused
    assert refusal.failure == FailureClass.INVALID_INPUT
    assert name in refusal.reason
    assert not bench.jobs


@pytest.mark.parametrize(
    "requirements",
    [
        {"positive_requirements": 5},
        {"positive_requirements": [["a"]]},
        {"negative_requirements": 5},
        {"memory": {1: 1, "b": 2}},
        {"memory": [{None: 1}]},
    ],
)
def test_requirements_of_a_wrong_form_are_refused(requirements: dict[str, Any]) -> None:
    bench = Bench()
    [refusal] = bench.say(alpha(requirements=requirements)).refused
    assert refusal.failure == FailureClass.INVALID_INPUT
    assert "requirements" in refusal.reason


@pytest.mark.parametrize("depth", [40, 300, 900])
def test_requirements_nested_too_deep_are_refused(depth: int) -> None:
    options = alpha(requirements={"a": None}).replace(b"\x81\xa1a\xc0", b"\x81\xa1a" + b"\x91" * depth + b"\x01")
    [refusal] = Bench().say(options).refused
    assert refusal.failure == FailureClass.INVALID_INPUT


def test_what_is_refused_leaves_nothing_behind() -> None:
    bench = Bench()
    for number in range(50):
        bench.say(alpha(priority=1_000 + number))
        bench.say(_encode(JobOptions(service=f"nobody-{number}")))
    assert len(bench.queue.room.groups()) == 0


def test_a_refusal_is_short_whatever_was_asked() -> None:
    bench = Bench()
    answer = bench.say(alpha(requirements={"gpu": "x" * 20_000}, service="nobody"), *[b""] * 1000)
    assert len(answer.refused) == 1000
    assert len(_encode(frames.Accepted(1, answer.refused))) < FRAME_BYTES_MAX


def test_groups_without_jobs_are_taken() -> None:
    bench = Bench()
    raw = msgspec.Raw(alpha())
    for groups in ([], [JobGroup(raw, [])], [JobGroup(raw, []), JobGroup(raw, [b"p"], [""]), JobGroup(raw, [], [])]):
        bench.frame_number += 1
        encoded = _encode(Submit(bench.frame_number, bench.next_job, groups))
        session = bench.queue.state.sessions[bench.session_number]
        assert bench.queue.submit(session, _decode_submit(encoded), encoded, bench.now).refused == []
        bench.commit()
    assert len(bench.run()) == 1


def test_options_have_a_limit() -> None:
    [refusal] = Bench().say(alpha(labels={"a": "x" * 100_000})).refused
    assert refusal.failure == FailureClass.INVALID_INPUT


def test_a_frame_has_so_many_jobs_that_its_answer_still_fits() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="at most"):
        bench.say(ALPHA, *[b""] * 200_000)
    bench.frame_number -= 1
    bench.next_job -= 200_000
    assert bench.say(ALPHA).refused == []


@pytest.mark.parametrize("after_s", [math.inf, -math.inf, math.nan, 1e300, 1e12, -5.0])
def test_a_wait_that_is_none_delays_the_next_attempt_for_a_bounded_time(after_s: float) -> None:
    bench = Bench()
    bench.say(ALPHA)
    [job] = bench.run()
    bench.fail(job, cause=Cause.UPSTREAM, retry_after_s=after_s)
    assert job.state is State.DELAYED
    bench.advance(8 * 86_400)
    bench.tick()
    assert job.state is State.WAITING  # type: ignore[comparison-overlap]  # the tick moved it


# --- claims ----------------------------------------------------------------------------------------------------------


def test_options_whose_group_was_dropped_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("empd.queue.room.GROUPS_IDLE_MAX", 10)
    bench = Bench(slots=64)
    for number in range(20):
        bench.say(alpha(requirements={"memory_gb": number}))
    for job in bench.run():
        bench.queue.done(bench.worker, DoneFrame(done=[DoneJob(job.id, job.epoch, b"r")]), bench.now)
    bench.workers["w0"].running.clear()
    bench.commit()
    bench.queue.forget(bench.now)
    bench.say(alpha(requirements={"memory_gb": 3}))
    assert len(bench.run()) == 1


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("happening", ["host", "broker and worker", "worker", "drain"])
def test_an_interrupted_job_is_not_overtaken_by_one_that_waited_behind_it(rows: int, happening: str) -> None:
    bench = Bench(slots=2)
    for _ in range(rows):
        bench.say(ALPHA, *[b"p"] * (6 // rows))
    ids = list(bench.jobs)
    assert [job.id for job in bench.run()] == ids[:2]
    if happening == "drain":
        for job in [bench.jobs[ids[1]], bench.jobs[ids[0]]]:  # given back in any order
            bench.fail(job, cause=Cause.DRAIN)
    elif happening == "worker":
        bench.kill_worker("w0", Exit.CRASHED)
    else:
        bench.workers.clear()
        bench.kill_broker(host_too=happening == "host")
    bench.workers.clear()
    bench.start_worker("w0", 1, 0)
    seen = []
    for _ in ids:
        [job] = bench.run()
        seen.append(job.id)
        bench.finish("w0", "done", 1)
    assert seen == ids


def test_jobs_of_one_row_that_come_back_stand_among_the_others_by_their_numbers() -> None:
    bench = Bench(slots=6)
    bench.say(ALPHA, *[b"p"] * 6)
    held = bench.run()
    for index in (5, 0, 3):  # the last one makes the line, the others come before it
        bench.fail(held[index], cause=Cause.DRAIN)
    for index in (1, 4, 2):
        bench.fail(held[index], cause=Cause.DRAIN)
    bench.workers.clear()
    bench.start_worker("w0", 6, 0)
    assert [job.id for job in bench.run()] == [job.id for job in held]


def test_a_worker_may_hold_a_job_of_a_service_that_it_does_not_offer_any_more() -> None:
    bench = Bench(slots=2)
    bench.say(ALPHA)
    assert len(bench.run()) == 1
    bench.queue.offer(bench.worker, 3, {"beta": Offer(1)}, "")
    bench.say(JobOptions(service="beta"))
    assert len(bench.run()) == 2


def test_assigned_jobs_fit_into_a_frame_with_their_checkpoints_and_options() -> None:
    bench = Bench(slots=64)
    for number in range(64):
        bench.say(alpha(labels={"n": str(number) * 10_000}))
    for job in bench.run():
        bench.queue.checkpoint(bench.worker, (job.id, job.epoch), bytes(60_000), bench.now)
        bench.fail(job, cause=Cause.DRAIN)
    claim = bench.queue.claim(bench.worker, bench.now)
    assert claim is not None
    assert len(_encode(frames.Assign(claim.groups))) < FRAME_BYTES_MAX


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_job_whose_run_and_total_limits_pass_together_expires() -> None:
    bench = Bench()
    bench.say(alpha(timeout_s=10.0, total_timeout_s=10.0))
    [job] = bench.run()
    bench.advance(10)
    bench.tick()
    assert bench.outcomes[job.id] == Outcome.EXPIRED


def test_a_job_that_is_stopped_for_its_run_limit_still_expires() -> None:
    bench = Bench()
    bench.say(alpha(timeout_s=10.0, total_timeout_s=12.0))
    [job] = bench.run()
    bench.workers["w0"].running.clear()  # it takes its time to stop
    bench.advance(10)
    bench.tick()
    assert job.state is State.CANCELLING
    bench.advance(3)
    bench.tick()
    bench.queue.done(bench.worker, DoneFrame(cancelled=[(job.id, job.epoch)]), bench.now)
    bench.commit()
    assert bench.outcomes[job.id] == Outcome.EXPIRED


def test_limits_of_ended_jobs_take_no_memory() -> None:
    bench = Bench()
    far = bench.wall_ns / NS_PER_S + 1e6
    for _ in range(40):
        bench.say(alpha(total_timeout_s=1e6, queue_timeout_s=1e6, not_before=far), *[b"p"] * 100)
        bench.queue.cancel(list(bench.jobs), bench.now)
        bench.commit()
        bench.tick()
    state = bench.queue.state
    assert len(state.deadlines) + len(state.due_wall) < 8_000


def test_back_off_lasts_after_a_restart() -> None:
    bench = Bench(policy(backoff_ns=100 * NS_PER_S, backoff_max_ns=100 * NS_PER_S))
    bench.say(alpha(not_before=bench.wall_ns / NS_PER_S + 1))
    bench.advance(2)
    bench.tick()
    [job] = bench.run()
    bench.fail(job)
    bench.kill_broker()
    bench.tick()
    assert bench.jobs[job.id].state is State.DELAYED
    bench.advance(130)
    bench.tick()
    assert bench.jobs[job.id].state is State.WAITING


# --- the journal -----------------------------------------------------------------------------------------------------


def test_results_of_many_jobs_fit_into_frames() -> None:
    bench = Bench(policy())
    for _ in range(30):
        bench.say(ALPHA, *[b"p"] * 1000)
    bench.queue.cancel(list(bench.jobs), bench.now)
    bench.commit()
    assert len(bench.ends) == 30_000
    assert max(map(len, bench.rows_of(Kind.RESULTS))) < FRAME_BYTES_MAX - 1024


def test_results_with_evidence_and_options_fit_into_frames() -> None:
    bench = Bench(policy(max_crashes=1), slots=256)
    for number in range(256):
        bench.say(alpha(labels={"n": str(number), "long": "x" * 8_000}))
    while len(bench.run()) < 256:
        assert bench.worker.held
    bench.queue.gone(("w0", 1), Exit.CRASHED, "e" * 16_000, bench.now)
    bench.commit()
    assert bench.queue.state.dead == 256
    assert max(map(len, bench.rows_of(Kind.RESULTS))) < FRAME_BYTES_MAX - 1024


def test_a_page_of_jobs_with_evidence_fits_into_a_frame() -> None:
    bench = Bench(policy(max_crashes=1), slots=256)
    bench.say(ALPHA, *[b"p"] * 256)
    bench.run()
    bench.queue.gone(("w0", 1), Exit.CRASHED, "e" * 16_000, bench.now)
    bench.commit()
    seen: list[int] = []
    place: requests.Place | None = requests.Place(0, 0)
    while place is not None:
        wanted = JobFilter(states=["dead"], limit=200, **place._asdict())
        page, place = requests.listing(bench.queue.state, wanted)
        assert len(_encode(page)) < FRAME_BYTES_MAX - 1024
        seen += [job.id for job in page]
    assert seen == list(bench.jobs)


def test_a_listing_leaves_out_no_job_that_is_carried_while_it_goes_on() -> None:
    bench = Bench()
    for number in (3, 2, 1):  # a carry holds jobs of several sessions, in the order of their rows
        bench.session_number, bench.frame_number, bench.next_job = number, 0, 1
        while number > len(bench.queue.state.sessions):
            bench.queue.open_session(b"token", "test", bench.now)
        bench.say(ALPHA, *[b"p"] * 4)
    ids = set(bench.jobs)
    seen: set[int] = set()
    place: requests.Place | None = requests.Place(0, 0)
    pages = 0
    while place is not None:
        page, place = requests.listing(bench.queue.state, JobFilter(limit=5, **place._asdict()))
        seen |= {job.id for job in page}
        pages += 1
        if pages == 2:
            bench.trim(1.0)  # the last page began among jobs that have moved
            bench.queue.cancel(sorted(seen)[:1], bench.now)
    assert seen == ids


def test_a_blob_that_a_carried_job_needs_is_not_given_away_after_a_restart() -> None:
    bench = Bench()
    blob = BlobRef("ab" * 16, 5, 7)
    bench.say(ALPHA, blob)
    first = bench.committed_seq
    bench.say(ALPHA, blob)
    late = list(bench.jobs)[-1]
    bench.queue.cancel([late], bench.now)
    bench.commit()
    carried = bench.queue.carry(first, bench.now)
    rows = [(seq, at_ns, int(fact.kind), fact.origin, fact.encoded()) for seq, at_ns, fact in carried]
    bench.journal = [row for row in bench.journal if row[0] > first] + rows
    bench.committed_seq = rows[-1][0]
    bench.kill_broker()
    assert bench.queue.state.blobs == {blob.id: 1}
    assert blob not in take_released(bench.queue.state)


def test_a_blob_used_again_in_the_same_pass_is_kept() -> None:
    bench = Bench()
    blob = BlobRef("ab" * 16, 5, 7)
    bench.say(ALPHA, blob)
    bench.queue.cancel(list(bench.jobs), bench.now)
    bench.say(ALPHA, blob)
    assert take_released(bench.queue.state) == []
    bench.queue.cancel(list(bench.jobs), bench.now)
    assert take_released(bench.queue.state) == [blob]
    assert take_released(bench.queue.state) == []


def test_frames_refused_for_ever_take_no_memory() -> None:
    bench = Bench(policy(queue_jobs_max=1))
    bench.say(ALPHA)
    for _ in range(2_000):
        assert len(bench.say(ALPHA, b"p", b"p").refused) == 2
    assert len(bench.queue.state.sessions[bench.session_number].skipped) <= 256


def test_a_job_stands_once_in_the_line_after_a_replay() -> None:
    """In a replay jobs leave the line in the middle: what became due is not written down."""
    bench = Bench(policy(backoff_ns=NS_PER_S), slots=1)
    bench.say(ALPHA, b"first", b"second")
    bench.say(alpha(not_before=bench.wall_ns / NS_PER_S + 1))
    [held] = bench.run()
    bench.advance(2)
    bench.tick()
    for _ in range(3):
        bench.fail(held, cause=Cause.DRAIN)
        [held] = bench.run()
    bench.kill_broker()
    queue: Queue = bench.queue
    standing = [job.id for group in queue.room.groups() for job in group.fifo if job.state is State.WAITING]
    standing += [job.id for group in queue.room.groups() for _, _, job in group.early if job.state is State.WAITING]
    assert len(standing) == len(set(standing))


def test_ended_jobs_whose_rows_are_trimmed_take_no_memory() -> None:
    bench = Bench(slots=64)
    bench.say(ALPHA, *[b"p"] * 50)
    bench.run()
    bench.finish("w0", "done", 50)
    assert len(bench.queue.state.recent) == 50  # no history has read them
    bench.trim(1.0)
    assert not bench.queue.state.recent


def test_a_dead_letter_is_kept_from_its_death_on() -> None:
    bench = Bench(policy(max_crashes=1, dead_keep_ns=3600 * NS_PER_S))
    bench.say(ALPHA)
    bench.advance(7200)
    [job] = bench.run()
    bench.kill_worker("w0", Exit.CRASHED)
    bench.queue.forget(bench.now)
    assert bench.jobs[job.id].state is State.DEAD
    bench.advance(3601)
    bench.queue.forget(bench.now)
    assert not bench.jobs


def test_a_carry_is_bounded_in_bytes() -> None:
    from empd.queue.carry import trim_point

    bench = Bench()
    for _ in range(400):
        bench.say(ALPHA, bytes(60_000))
    upto = trim_point(bench.queue.state, 1, bench.committed_seq, (100_000, 8 << 20))
    carried = bench.queue.carry(upto, bench.now)
    assert upto > 1
    assert sum(len(fact.encoded()) for _, _, fact in carried) < 16 << 20
    assert max(len(fact.encoded()) for _, _, fact in carried) < FRAME_BYTES_MAX - 1024


def test_a_job_that_does_not_stop_is_named_again_when_its_holder_could_not_be_ended() -> None:
    bench = Bench()
    bench.say(alpha(timeout_s=10.0))
    [job] = bench.run()
    bench.workers["w0"].running.clear()
    bench.advance(10)
    assert bench.queue.tick(bench.now) == []
    bench.commit()
    bench.advance(6)
    assert [stuck.id for _, stuck in bench.queue.tick(bench.now)] == [job.id]
    assert bench.queue.tick(bench.now) == []
    deadlines.ask_again(bench.queue.state, job, bench.mono_ns)
    bench.advance(1)
    assert [stuck.id for _, stuck in bench.queue.tick(bench.now)] == [job.id]
