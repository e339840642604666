"""What clients ask of jobs, in every state that a job can be in: state, cancel, retry, list."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from broker_process import RawBroker, RawClient, RawWorker, group

from empd.clock import now
from empd.errors import FailureClass
from empd.job import Cause, JobFilter, Outcome
from empd.lifecycle import Exit
from empd.result import DoneJob, JobError
from empd.wire import frames

RACES = 2_000


def cancel(client: RawClient, *ids: int, **said: Any) -> dict[str, list[int]]:
    body: dict[str, list[int]] = client.ask(frames.Cancel, list(ids), **said)
    return body


def failed(job: frames.AssignedJob, *, retry: bool, cause: Cause = Cause.JOB_FAULT) -> frames.FailedJob:
    return frames.FailedJob(job.id, job.epoch, JobError("internal", "it broke"), retry, cause)


def bury(broker: RawBroker, client: RawClient, service: str = "echo") -> tuple[int, frames.AssignedJob]:
    """A dead-lettered job, and its last assignment."""
    [job_id] = client.accepted(group(b"\xc0", service=service))
    for name in ("doomed-1", "doomed-2"):
        worker = broker.worker(name, services=(service,))
        last = worker.claim()
        assert last.id == job_id
        broker.gone(worker)
    assert client.result(job_id).outcome == Outcome.DEAD
    return job_id, last


# --- Ask ---


def test_states_of_unfinished_ended_and_unknown_jobs(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    first, second = client.accepted(group(b"\xc0", b"\xc0", labels={"a": "b"}, customer_id="c"))
    job = worker.claim()
    states = client.ask(frames.Ask, [first, second, 12345 << 32], answer=frames.States).jobs
    assert [state.state for state in states] == ["assigned", "waiting", "unknown"]
    assert (states[0].worker, states[0].epoch, states[0].attempts) == ("w-0", job.epoch, 1)
    assert states[0].labels == {"a": "b"}
    assert states[0].customer_id == "c"
    assert states[1].reason
    assert states[2].epoch == 0, "no row that history still has to reach: what it does not hold by now never ended"
    worker.complete(job, result=b"\x07")
    assert client.result(first).result == b"\x07"
    answer = client.ask(frames.Ask, [first], answer=frames.States)
    assert answer.jobs == []
    assert client.result(first).result == b"\x07", "asked again, told again"


def test_an_ended_job_is_told_after_a_restart(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    worker.complete(worker.claim(), result=b"\x2a")
    client.result(job_id)
    broker.restart()
    other = broker.client()
    other.ask(frames.Ask, [job_id], answer=frames.States)
    assert other.result(job_id).result == b"\x2a"


def test_whoever_asks_for_anothers_job_hears_of_its_end(broker: RawBroker) -> None:
    client, other, worker = broker.client(), broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    assert other.state_of(job_id) in ("waiting", "assigned")
    worker.complete(worker.claim())
    assert other.result(job_id).outcome == Outcome.COMPLETED
    assert client.result(job_id).outcome == Outcome.COMPLETED


def test_too_many_ids_in_one_ask_are_an_error(broker: RawBroker) -> None:
    client = broker.client()
    client.say(frames.Ask(7, list(range(20_001))))
    assert "at most 20000" in client.hear(frames.Error, request=7).message


# --- Cancel ---


def test_cancel_of_a_waiting_job_ends_it_at_once(broker: RawBroker) -> None:
    client = broker.client()
    [job_id] = client.accepted(group(b"\xc0"))
    assert cancel(client, job_id, job_id)["cancelled"] == [job_id]
    ended = client.result(job_id)
    assert ended.outcome == Outcome.CANCELLED
    assert ended.error is not None
    assert ended.error.failure == FailureClass.CANCELLED
    assert cancel(client, job_id) == {"cancelled": [], "cancelling": [], "unknown": [job_id]}
    assert client.told() == []


def test_cancel_of_a_delayed_job_ends_it_at_once(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [later] = client.accepted(group(b"\xc0", not_before=now().wall_ns / 1e9 + 3600))
    assert client.state_of(later) == "delayed"
    assert cancel(client, later)["cancelled"] == [later]
    [backing_off] = client.accepted(group(b"\xc0"))
    worker.report([], [failed(worker.claim(), retry=True)])
    assert client.state_of(backing_off) == "delayed"
    assert cancel(client, backing_off)["cancelled"] == [backing_off]
    assert client.result(backing_off).outcome == Outcome.CANCELLED


def test_cancel_of_a_running_job_ends_it_when_its_work_has_stopped(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    job = worker.claim()
    assert cancel(client, job_id)["cancelling"] == [job_id]
    stop = worker.hear(frames.Stop)
    assert (stop.id, stop.epoch, stop.failure) == (job.id, job.epoch, FailureClass.CANCELLED)
    assert cancel(client, job_id)["cancelling"] == [job_id]
    assert client.state_of(job_id) == "cancelling"
    assert not [frame for frame in worker.take() if type(frame) is frames.Stop], "asked twice, told once"
    worker.report([], [], [(job.id, job.epoch)])
    assert client.result(job_id).outcome == Outcome.CANCELLED


def test_a_job_that_completes_while_it_is_cancelled_has_completed(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    job = worker.claim()
    cancel(client, job_id)
    worker.complete(job)
    assert client.result(job_id).outcome == Outcome.COMPLETED


def test_a_cancel_survives_the_broker_and_is_told_to_the_holder_again(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    job = worker.claim()
    cancel(client, job_id)
    worker.hear(frames.Stop)
    broker.restart()
    worker.hello(held=[(job.id, job.epoch)])
    assert worker.hear(frames.Stop).id == job_id
    worker.report([], [], [(job.id, job.epoch)])
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    client.ask(frames.Ask, [job_id], answer=frames.States)
    assert client.result(job_id).outcome == Outcome.CANCELLED


def test_a_cancelled_job_whose_holder_dies_is_cancelled_and_does_not_run_again(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    worker.claim()
    cancel(client, job_id)
    broker.gone(worker)
    assert client.result(job_id).outcome == Outcome.CANCELLED


def test_cancel_of_a_dead_lettered_job(broker: RawBroker) -> None:
    client = broker.client()
    job_id, _ = bury(broker, client)
    assert cancel(client, job_id)["cancelled"] == [job_id]
    assert client.ask(frames.Status)["jobs"] == {"unfinished": 0, "dead": 0, "held": 0, "payload_bytes": 0}
    assert client.ask(frames.Retry, [job_id]) == {"retried": [], "not_dead": [job_id]}


def test_cancel_by_filter_and_its_dry_run(broker: RawBroker) -> None:
    client = broker.client()
    mine = client.accepted(group(b"\xc0", b"\xc0", customer_id="a"))
    client.accepted(group(b"\xc0", customer_id="b"))
    wanted = JobFilter(customer_id="a")
    assert cancel(client, filter=wanted, dry_run=True) == {"would_cancel": mine}
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 3
    assert cancel(client, filter=wanted)["cancelled"] == mine
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 1


def test_cancel_races_completion_and_never_hits_a_neighbour(broker: RawBroker) -> None:
    """One slot: when a cancel comes late the slot already runs the neighbour, which must never be told to stop."""
    client, worker = broker.client(), broker.worker()
    ids = client.accepted(*[group(b"\xc0") for _ in range(RACES * 2)])
    stopped = 0
    for race, (victim, neighbour) in enumerate(zip(ids[::2], ids[1::2], strict=True)):
        job = worker.claim()
        assert job.id == victim
        # Both frames are on their way at once, now the one and now the other first.
        if race % 2:
            worker.report([DoneJob(job.id, job.epoch, b"\xc0")], settle=False)
        client.say(frames.Cancel(race + 1, [victim]))
        if not race % 2:
            worker.report([DoneJob(job.id, job.epoch, b"\xc0")], settle=False)
        answer = client.hear(frames.Reply, request=race + 1).body
        assert victim in answer["cancelling"] + answer["unknown"]
        assert worker.claim().id == neighbour
        stops = [frame for frame in worker.take() if type(frame) is frames.Stop]
        assert {(stop.id, stop.epoch) for stop in stops} <= {(job.id, job.epoch)}
        stopped += len(stops)
        worker.complete(frames.AssignedJob(neighbour, job.epoch + 1, b""), settle=False)
    assert 0 < stopped < RACES, "both orders must have happened"
    for job_id in ids:
        assert client.result(job_id).outcome == Outcome.COMPLETED, "the connector had completed each"
    assert client.ask(frames.Status)["counters"]["stale_completions"] == 0


def test_a_stale_epoch_completes_nothing(broker: RawBroker) -> None:
    client = broker.client()
    [job_id] = client.accepted(group(b"\xc0"))
    first = broker.worker("w-0")
    old = first.claim()
    broker.gone(first)
    second = broker.worker("w-1")
    new = second.claim()
    assert new.epoch > old.epoch
    second.complete(old)
    second.complete(frames.AssignedJob(new.id, new.epoch + 1, b""))
    assert client.state_of(job_id) == "assigned"
    second.complete(new, new)
    assert client.result(job_id).outcome == Outcome.COMPLETED
    second.complete(new)
    assert client.ask(frames.Status)["counters"]["stale_completions"] == 4
    assert client.told() == []


def test_epochs_never_repeat_over_restarts(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    epochs = []
    for _ in range(4):
        client.accepted(group(b"\xc0"))
        job = worker.claim()
        epochs.append(job.epoch)
        worker.complete(job)
        broker.restart()
        worker.hello()
        client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    assert [epoch >> 32 for epoch in epochs] == [1, 2, 3, 4]


# --- workers that come back ---


def test_a_worker_keeps_its_claim_over_the_brokers_death(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    job = worker.claim()
    broker.restart()
    rival = broker.worker("w-1")
    welcome = worker.hello(held=[(job.id, job.epoch)])
    assert welcome.abandon == []
    worker.complete(job)
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    client.ask(frames.Ask, [job_id], answer=frames.States)
    assert client.result(job_id).attempts == 1
    assert not [frame for frame in rival.take() if type(frame) is frames.Assign]


def test_a_worker_that_never_got_its_assignment_gets_the_job_again_uncharged(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    lost = worker.claim()
    broker.restart()
    worker.hello(held=[])
    again = worker.claim()
    assert again.id == job_id
    assert again.epoch != lost.epoch


def test_what_the_broker_does_not_know_is_abandoned_before_credit_counts(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    unknown = (99 << 32 | 1, 5)
    assert worker.hello(held=[unknown]).abandon == [unknown]
    [job_id] = client.accepted(group(b"\xc0"))
    assert client.state_of(job_id) == "waiting"
    worker.say(frames.Abandoned([unknown]))
    assert worker.claim().id == job_id


@pytest.mark.parametrize(
    ("how", "charged"),
    [(Exit.CRASHED, True), (Exit.DRAINED, False), (Exit.GPU_LOST, False), (Exit.OUT_OF_MEMORY, True)],
)
def test_a_death_is_charged_by_its_cause(broker: RawBroker, how: Exit, charged: bool) -> None:
    client = broker.client()
    [job_id] = client.accepted(group(b"\xc0"))
    for number in range(2 if charged else 6):
        worker = broker.worker(f"w-{number}")
        worker.claim()
        broker.gone(worker, how)
    if charged:
        assert client.result(job_id).outcome == Outcome.DEAD
    else:
        last = broker.worker("last")
        last.complete(last.claim())
        assert client.result(job_id).outcome == Outcome.COMPLETED


def test_deaths_while_the_broker_was_down_are_heard_from_the_picture(broker: RawBroker) -> None:
    client = broker.client()
    [job_id] = client.accepted(group(b"\xc0"))
    worker = broker.worker()
    worker.claim()
    broker.kill()
    broker.living.pop(worker.generation)
    broker.start()
    other = broker.worker("w-1")
    assert other.claim().id == job_id


def test_a_worker_that_does_not_stop_is_condemned(make_broker: Any) -> None:
    broker = make_broker(cancel_grace_s=0.2)
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0", timeout_s=0.2))
    job = worker.claim()
    assert worker.hear(frames.Stop).failure == FailureClass.TIMEOUT
    record = broker.heard_kill()
    assert record.generation == worker.generation
    broker.gone(worker, Exit.HUNG)
    again = broker.worker("w-1")
    second = again.claim()
    assert (second.id, second.attempt) == (job_id, job.attempt + 1)


# --- Retry ---


def test_a_dead_letter_is_told_kept_and_retried_with_fresh_budgets(broker: RawBroker) -> None:
    client = broker.client()
    job_id, last = bury(broker, client)
    assert client.state_of(job_id) == "dead"
    assert client.ask(frames.Status)["jobs"]["dead"] == 1
    broker.restart()
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    assert client.state_of(job_id) == "dead"
    client.take()
    assert client.ask(frames.Retry, [job_id], dry_run=True) == {"would_retry": [job_id]}
    assert client.ask(frames.Retry, [job_id, 5]) == {"retried": [job_id], "not_dead": [5]}
    assert client.ask(frames.Retry, [job_id]) == {"retried": [], "not_dead": [job_id]}
    for name in ("after-1", "after-2"):
        worker = broker.worker(name)
        job = worker.claim()
        assert job.id == job_id
        assert job.epoch > last.epoch
        if name == "after-1":
            broker.gone(worker)
    worker.complete(job)
    assert client.result(job_id).outcome == Outcome.COMPLETED
    assert client.ask(frames.Status)["jobs"] == {"unfinished": 0, "dead": 0, "held": 0, "payload_bytes": 0}


def test_retry_by_filter_touches_only_the_dead(broker: RawBroker) -> None:
    client = broker.client()
    dead, _ = bury(broker, client, "other")
    waiting = client.accepted(group(b"\xc0", service="other"))
    assert client.ask(frames.Retry, [], filter=JobFilter(service="other")) == {"retried": [dead], "not_dead": []}
    assert client.state_of(waiting[0]) == "waiting"
    assert client.ask(frames.Retry, [], filter=JobFilter(states=["waiting"]))["retried"] == []


# --- List ---


def pages(client: RawClient, limit: int, **fields: Any) -> list[int]:
    found: list[int] = []
    wanted: JobFilter | None = JobFilter(limit=limit, **fields)
    while wanted is not None:
        page, wanted = one_page(client, wanted)
        assert len(page) <= limit
        found += page
    return found


def one_page(client: RawClient, wanted: JobFilter) -> tuple[list[int], JobFilter | None]:
    """The ids on it, and what asks for the next one."""
    body = client.ask(frames.List, wanted)
    ids = [job["id"] for job in body["jobs"]]
    if body["cursor"] is None:
        return ids, None
    return ids, msgspec.structs.replace(wanted, cursor=body["cursor"], after=body["after"])


@pytest.mark.parametrize("limit", [1, 7, 10, 1000])
def test_pages_neither_skip_nor_repeat(broker: RawBroker, limit: int) -> None:
    client = broker.client()
    ids = client.accepted(*[group(b"\xc0", b"\xc0") for _ in range(10)])
    assert pages(client, limit) == ids


def test_jobs_cancelled_between_pages_make_none_left_out(broker: RawBroker) -> None:
    client = broker.client()
    ids = client.accepted(*[group(b"\xc0", b"\xc0") for _ in range(10)])
    found, following = one_page(client, JobFilter(limit=6))
    assert following is not None
    client.ask(frames.Cancel, found)
    second, following = one_page(client, following)
    assert following is not None
    client.ask(frames.Cancel, ids[11:14])  # the last of that page, and two that were not on one yet
    third, following = one_page(client, following)
    assert found + second + third == ids[:12] + ids[14:20]
    assert following is None


def test_filters_select(broker: RawBroker) -> None:
    client = broker.client()
    [held] = client.accepted(group(b"\xc0", labels={"k": "v", "l": "w"}))
    worker = broker.worker()
    worker.claim()
    [b] = client.accepted(group(b"\xc0", service="other", customer_id="c", workflow_id="f", labels={"k": "v"}))
    [c] = client.accepted(group(b"\xc0", service="other", not_before=now().wall_ns / 1e9 + 3600))
    assert pages(client, 10, service="other") == [b, c]
    assert pages(client, 10, states=["delayed"]) == [c]
    assert pages(client, 10, states=["assigned", "waiting"]) in ([held, b], [b, held])
    assert pages(client, 10, customer_id="c") == [b]
    assert pages(client, 10, workflow_id="f") == [b]
    assert pages(client, 10, worker="w-0") == [held]
    assert set(pages(client, 10, labels={"k": "v"})) == {held, b}
    assert pages(client, 10, labels={"k": "v", "l": "w"}) == [held]
    assert pages(client, 10, service="nobody") == []


@pytest.mark.parametrize(("limit", "count"), [(0, 1), (-5, 1), (1 << 62, 3)])
def test_odd_limits_still_page(broker: RawBroker, limit: int, count: int) -> None:
    client = broker.client()
    client.accepted(group(b"\xc0", b"\xc0", b"\xc0"))
    assert len(client.ask(frames.List, JobFilter(limit=limit))["jobs"]) == count
    assert len(client.ask(frames.List, JobFilter(limit=9, cursor=-(1 << 62)))["jobs"]) == 3


@pytest.mark.parametrize("verb", [frames.List, frames.Cancel, frames.Retry])
def test_an_unknown_state_is_named(broker: RawBroker, verb: Any) -> None:
    client = broker.client()
    wanted = JobFilter(states=["running"])
    client.say(verb(3, wanted) if verb is frames.List else verb(3, [], wanted))
    error = client.hear(frames.Error, request=3)
    assert error.failure == FailureClass.INVALID_INPUT
    assert "'running'" in error.message
    assert "waiting" in error.message


# --- Operate, matching ---


def test_drain_and_resume_survive_a_restart(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    assert client.ask(frames.Operate, "drain")["drained"] == ["*"]
    [job_id] = client.accepted(group(b"\xc0"))
    assert "drained" in client.ask(frames.Ask, [job_id], answer=frames.States).jobs[0].reason
    assert any("drained" in problem for problem in client.ask(frames.Status)["problems"])
    broker.restart()
    worker.hello()
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    assert client.state_of(job_id) == "waiting"
    assert client.ask(frames.Operate, "resume")["drained"] == []
    assert worker.claim().id == job_id


def test_one_worker_is_drained(broker: RawBroker) -> None:
    client, first = broker.client(), broker.worker("w-0")
    assert client.ask(frames.Operate, "drain", ["w-0"])["drained"] == ["w-0"]
    [job_id] = client.accepted(group(b"\xc0"))
    assert client.state_of(job_id) == "waiting"
    assert broker.worker("w-1").claim().id == job_id
    client.ask(frames.Operate, "resume", ["w-0"])
    client.accepted(group(b"\xc0"))
    first.claim()


def test_an_unknown_verb_is_named(broker: RawBroker) -> None:
    client = broker.client()
    client.say(frames.Operate(4, "explode"))
    assert "accepted: drain, resume, reload, stop" in client.hear(frames.Error, request=4).message


def test_jobs_run_only_where_requirements_allow(broker: RawBroker) -> None:
    client = broker.client()
    small = broker.worker("small", services=("narrow",), capabilities={"model": "small", "cards": 4})
    [job_id] = client.accepted(group(b"\xc0", service="narrow", requirements={"model": "big", "cards": 2}))
    assert client.state_of(job_id) == "waiting"
    assert not [frame for frame in small.take() if type(frame) is frames.Assign]
    big = broker.worker("big", services=("narrow",), capabilities={"model": "big", "cards": 2})
    assert big.claim().id == job_id
    client.submit(group(b"\xc0", service="narrow", requirements={"cards": 3}))
    [refusal] = client.hear(frames.Accepted, number=client.number).refused
    assert refusal.failure == FailureClass.UNMATCHABLE


def test_a_worker_gets_no_more_than_its_slots(broker: RawBroker) -> None:
    client: RawClient = broker.client()
    worker: RawWorker = broker.worker(slots=3)
    client.accepted(*[group(b"\xc0") for _ in range(10)])
    held = [worker.claim() for _ in range(3)]
    assert client.ask(frames.Status)["jobs"]["held"] == 3
    worker.complete(held[0])
    worker.claim()
    assert client.ask(frames.Status)["jobs"]["held"] == 3
    worker.say(frames.Capacity(0, [frames.ServiceOffer("echo", 0, "rests")], "rests"))
    worker.complete(held[1], held[2])
    status = client.ask(frames.Status)
    assert status["jobs"]["held"] == 1
    assert status["services"]["echo"]["reasons"] == ["rests"]


def test_status_says_why_no_worker_takes_a_services_jobs(broker: RawBroker) -> None:
    client: RawClient = broker.client()

    def reasons() -> list[str]:
        found: list[str] = client.ask(frames.Status)["services"]["echo"]["reasons"]
        return found

    assert reasons() == ["no connected worker offers echo"]
    worker: RawWorker = broker.worker("w-0", slots=1)
    client.ask(frames.Operate, "resume")  # answered after the worker's hello
    assert reasons() == []
    [first] = client.accepted(group(b"\xc0"))
    assert worker.claim().id == first
    assert reasons() == [], "nothing waits"
    [second] = client.accepted(group(b"\xc0"))
    assert reasons() == ["every worker that offers it is busy"]
    client.ask(frames.Operate, "drain", ["w-0"])
    drained = "w-0 drained; `empd resume` lets them go on"
    assert reasons() == [drained]
    assert client.ask(frames.Ask, [second], answer=frames.States).jobs[0].reason == drained
    client.ask(frames.Operate, "drain")
    assert reasons() == ["claims are drained; `empd resume` opens them"]


def test_status_says_that_nobody_is_configured_any_more_for_what_waits(broker: RawBroker) -> None:
    client: RawClient = broker.client()
    client.accepted(group(b"\xc0", service="narrow", requirements={"cards": 1}))
    broker.worker_types = ["w"]
    broker.restart()
    narrow = broker.client().ask(frames.Status)["services"]["narrow"]
    assert (narrow["waiting"], narrow["reasons"]) == (1, ["no worker is configured for it any more"])
