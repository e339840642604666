"""A worker's life: broker restarts, stop, drain, recycle, crashes, health, abandon, what the board and metrics show."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from test_worker_callables import HERE, M, latest_offers
from worker_broker import BrokerDouble, python, simulation, until

from empd.clock import now
from empd.job import Cause
from empd.lifecycle import Notice
from empd.wire import frames
from empd.wire.telemetry import Metrics


def test_a_claim_outlives_two_brokers_and_its_outcome_is_said_until_settled(broker: BrokerDouble, start) -> None:
    start({"slow": simulation(duration_s=4.0), "noop": simulation()}, slots=2).ready()
    broker.settling = False
    slow = broker.assign("slow", [None])[0]
    quick = broker.assign("noop", [None])[0]
    broker.result(quick)
    for restarts in (1, 2):
        broker.frames.clear()
        broker.restart()
        hello = broker.wait(frames.WorkerHello)[0]
        assert sorted(tuple(claim) for claim in hello.held) == sorted([slow, quick])
        first = broker.wait(frames.Done)[0]
        assert [(job.id, job.epoch) for job in first.done] == [quick]
        assert first.number == 1, restarts
    assert broker.result(slow) == {"steps": 1}
    broker.settling = True
    broker.restart()
    until(lambda: len(broker.of(frames.Done)) >= 4)
    numbers = [frame.number for frame in broker.of(frames.Done)]
    assert numbers[-2:] == [1, 2]
    broker.roundtrip()
    broker.frames.clear()
    broker.restart()
    assert broker.wait(frames.WorkerHello)[0].held == []


def test_outcomes_while_there_is_no_broker_are_kept(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation(duration_s=2.0)}, slots=8).ready()
    claims = broker.assign("s", [None] * 8)
    until(lambda: worker.board.read(1).activity.jobs_running == 8, "all jobs run")
    broker.die()
    until(lambda: worker.board.read(1).activity.jobs_done == 8, "all jobs done")
    broker.bind()
    assert sorted(tuple(claim) for claim in broker.wait(frames.WorkerHello, 2)[-1].held) == sorted(claims)
    assert all(broker.result(claim) for claim in claims)


def test_nothing_leaves_before_the_welcome(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation(duration_s=0.5)}).ready()
    claim = broker.assign("s", [None])[0]
    until(lambda: worker.board.read(1).activity.job_id == claim[0])
    broker.welcoming = False
    broker.restart()
    hello = broker.wait(frames.WorkerHello, 2)[1]
    assert [tuple(held) for held in hello.held] == [claim]
    assert not broker.router.poll(500)
    broker.send(frames.WorkerWelcome(frames.VERSION, 2, "0" * 32))
    broker.result(claim)


def test_what_the_broker_does_not_know_is_stopped_and_named(broker: BrokerDouble, start, tmp_path: Path) -> None:
    start({"nap": python(f"{M}:nap_async"), "noop": simulation()}, 2, settings=HERE).ready()
    broker.settling = False
    nap = broker.assign("nap", [str(tmp_path)])[0]
    over = broker.assign("noop", [None])[0]
    broker.result(over)
    until((tmp_path / "began").exists)
    broker.abandon = [nap, over, (999, 999)]
    broker.frames.clear()
    broker.restart()
    named = until(lambda: found if len(found := abandoned(broker)) == 3 else None)
    assert named == {nap, over, (999, 999)}
    assert (tmp_path / "ended").exists()
    assert broker.done() == {}
    assert broker.cancelled() == set()
    broker.abandon = []
    broker.restart()
    assert broker.wait(frames.WorkerHello, 2)[-1].held == []


def abandoned(broker: BrokerDouble) -> set[tuple[int, int]]:
    return {tuple(claim) for frame in broker.of(frames.Abandoned) for claim in frame.jobs}


def test_an_unanswered_checkpoint_is_asked_again_after_a_restart(broker: BrokerDouble, start) -> None:
    start({"s": python(f"{M}:talk_async")}, settings=HERE).ready()
    claim = broker.assign("s", [None])[0]
    broker.wait(frames.Checkpoint)
    broker.restart()
    again = broker.wait(frames.Checkpoint, 2)[1]
    assert (again.id, again.epoch, again.data) == (*claim, b"point")
    broker.send(frames.Stored(again.request))
    assert broker.wait(frames.StateGet)


def test_a_state_whose_answer_was_lost_is_not_taken_for_a_conflict(broker: BrokerDouble, start) -> None:
    start({"s": python(f"{M}:talk_async")}, settings=HERE).ready()
    claim = broker.assign("s", [None])[0]
    broker.send(frames.Stored(broker.wait(frames.Checkpoint)[0].request))
    broker.send(frames.StateValue(broker.wait(frames.StateGet)[0].request, 4, b"now"))
    broker.wait(frames.StateSet)
    broker.restart()
    again = broker.wait(frames.StateSet, 2)[1]
    broker.send(frames.Error(again.request, "refused", "version is 5"))
    broker.send(frames.StateValue(broker.wait(frames.StateGet, 2)[1].request, 5, b"next"))
    assert broker.result(claim)[1] == 5


def test_what_an_assignment_settles_is_not_held_any_more(broker: BrokerDouble, start) -> None:
    start({"s": simulation()}).ready()
    broker.settling = False
    first = broker.assign("s", [None])[0]
    broker.result(first)
    second = broker.assign("s", [None], settled=broker.of(frames.Done)[0].number)[0]
    broker.result(second)
    broker.restart()
    assert [tuple(claim) for claim in broker.wait(frames.WorkerHello, 2)[1].held] == [second]


def test_drain_finishes_what_runs_settles_and_says_so(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation(duration_s=3.0)}, slots=2).ready()
    broker.settling = False
    claims = broker.assign("s", [None, None])
    broker.roundtrip()  # what reaches a draining worker is given back, not run
    worker.say(Notice.DRAIN, 30)
    until(lambda: broker.of(frames.Capacity) and broker.of(frames.Capacity)[-1].slots == 0, "no slots")
    assert broker.of(frames.Capacity)[-1].reason == "draining"
    assert latest_offers(broker)["s"].slots == 0
    assert all(broker.result(claim) for claim in claims)
    assert worker.process.poll() is None, "the outcome is not settled yet"
    broker.send(frames.Settled(broker.of(frames.Done)[-1].number))
    worker.notice(Notice.DRAINED)
    assert worker.ended() == 0


def test_what_was_assigned_before_the_broker_heard_of_the_drain_is_done(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation()}, slots=2).ready()
    broker.answering = False
    worker.say(Notice.DRAIN, 30)
    asked = broker.wait(frames.StateGet)[0]
    claim = broker.assign("s", [None])[0]
    broker.send(frames.StateValue(asked.request, 0, b""))
    assert broker.result(claim)
    worker.notice(Notice.DRAINED)
    assert worker.ended() == 0


def test_a_drain_can_be_taken_back(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation(duration_s=5.0), "noop": simulation()}, slots=2).ready()
    claim = broker.assign("s", [None])[0]
    worker.say(Notice.DRAIN, 30)
    until(lambda: latest_offers(broker)["s"].reason == "draining")
    worker.say(Notice.RESUME)
    until(lambda: latest_offers(broker)["s"].slots == 2)
    broker.result(claim)
    assert broker.result(broker.assign("noop", [None])[0])
    assert worker.process.poll() is None


def test_at_the_drains_limit_jobs_are_given_back_uncharged(broker: BrokerDouble, start, tmp_path: Path) -> None:
    worker = start({"s": python(f"{M}:nap_async")}, settings=HERE).ready()
    claim = broker.assign("s", [str(tmp_path)])[0]
    until((tmp_path / "began").exists)
    worker.say(Notice.DRAIN, 1)
    failed = broker.failure(claim)
    assert (failed.cause, failed.retry) == (Cause.DRAIN, True)
    assert (tmp_path / "ended").exists()
    assert worker.ended() == 0


@pytest.mark.parametrize("by", ["record", "signal"])
def test_stop_gives_back_what_runs_and_what_waits(broker: BrokerDouble, start, tmp_path: Path, by: str) -> None:
    worker = start({"s": python(f"{M}:nap_async")}, settings=HERE).ready()
    claims = broker.assign("s", [str(tmp_path)] * 3)
    until((tmp_path / "began").exists)
    if by == "record":
        worker.say(Notice.STOP)
    else:
        worker.process.send_signal(signal.SIGTERM)
    for claim in claims:
        failed = broker.failure(claim)
        assert (failed.cause, failed.retry, failed.error.failure) == (Cause.DRAIN, True, "unavailable")
    assert worker.ended() == 0


def test_nothing_of_a_worker_happens_after_its_end(broker: BrokerDouble, start) -> None:
    worker = start({"s": python(f"{M}:square")}, settings={"heartbeat_s": 0.001}).ready()
    worker.say(Notice.STOP)
    assert worker.ended() == 0
    assert "Traceback" not in worker.stderr()


def test_stop_does_not_wait_for_a_call_that_cannot_be_stopped(broker: BrokerDouble, start, tmp_path: Path) -> None:
    worker = start({"s": python(f"{M}:nap")}, settings={**HERE, "term_grace_s": 1.0}).ready()
    claim = broker.assign("s", [str(tmp_path)])[0]
    until((tmp_path / "began").exists)
    worker.say(Notice.STOP)
    assert worker.ended() == 0
    assert claim not in broker.failed()


def test_a_worker_ends_when_the_supervisor_is_gone(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation(duration_s=60)}).ready()
    broker.assign("s", [None])
    worker.control.close()
    assert worker.process.wait(60) == 1


def test_a_worker_above_its_memory_limit_is_recycled_between_jobs(broker: BrokerDouble, start) -> None:
    services = {"hoard": python(f"{M}:hoard", isolation="thread"), "slow": simulation(duration_s=4.0)}
    worker = start(services, 2, worker={"memory_max_bytes": 1}, settings=HERE).ready()
    assert "memory_limit_raised" in worker.stderr()
    beat = worker.board.read(1).activity.heartbeat_mono_ns
    until(lambda: worker.board.read(1).activity.heartbeat_mono_ns > beat + 300_000_000)
    assert worker.process.poll() is None, "no limit holds below what an idle worker needs"
    slow, hoard = broker.assign("slow", [None])[0], broker.assign("hoard", [100])[0]
    worker.notice(Notice.RECYCLE)
    assert slow not in broker.done()
    assert broker.result(hoard) == 1
    assert broker.result(slow) == {"steps": 1}
    assert worker.ended() == 0
    assert broker.of(frames.Capacity)[-1].reason == "recycling"


def test_memory_of_callables_in_processes_counts_for_their_worker(broker: BrokerDouble, start) -> None:
    services = {"hoard": python(f"{M}:hoard", isolation="process")}
    worker = start(services, 2, worker={"memory_max_bytes": 1}, settings=HERE).ready()
    hoard = broker.assign("hoard", [100])[0]
    worker.notice(Notice.RECYCLE)
    assert broker.result(hoard) == 1
    assert worker.ended() == 0


@pytest.mark.parametrize(
    ("fault", "number"), [("crash", signal.SIGKILL), ("segv", signal.SIGSEGV), ("abort", signal.SIGABRT)]
)
def test_simulated_crashes_take_the_worker_only_as_often_as_asked(broker: BrokerDouble, start, fault, number) -> None:
    worker = start({"s": simulation(duration_s=0)}).ready()
    broker.assign("s", [{"fault": fault, "times": 1}])
    assert worker.process.wait(60) == -number
    start({"s": simulation(duration_s=0)}, generation=78).ready()
    assert broker.result(broker.assign("s", [{"fault": fault, "times": 1}], attempt=2)[0]) == {"steps": 1}


def test_a_held_gil_stops_the_heartbeat_and_a_hang_does_not(broker: BrokerDouble, start) -> None:
    hanging = start({"s": simulation()}).ready()
    claim = broker.assign("s", [{"fault": "hang"}])[0]
    until(lambda: hanging.board.read(1).activity.job_id == claim[0])
    broker.send(frames.Stop(*claim, "cancelled"))
    beat = hanging.board.read(1).activity.heartbeat_mono_ns
    until(lambda: hanging.board.read(1).activity.heartbeat_mono_ns > beat + 500_000_000)
    shown = hanging.board.read(1).activity
    assert (shown.job_id, shown.epoch, shown.jobs_running) == (*claim, 1)
    assert broker.of(frames.Done) == []
    hanging.close()
    broker.frames.clear()
    stuck = start({"s": simulation()}, name="cpu-1").ready()
    broker.assign("s", [{"fault": "hang_gil"}])
    gap_ns = 700_000_000
    until(lambda: now().mono_ns - stuck.board.read(1).activity.heartbeat_mono_ns > gap_ns, "a missed heartbeat")
    assert stuck.process.poll() is None


def test_failing_health_takes_the_offer_back_and_gives_it_again(broker: BrokerDouble, start) -> None:
    start({"s": simulation(health_failure_rate=0.5), "never": simulation(health_failure_rate=1.0)}, slots=2).ready()
    until(lambda: latest_offers(broker)["s"].slots == 2, "health")
    assert latest_offers(broker)["never"].slots == 0
    assert "health" in latest_offers(broker)["never"].reason
    assert broker.result(broker.assign("s", [None])[0])


def test_the_board_shows_the_job_and_its_progress(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation(duration_s=3.0, steps=10)}).ready()
    claim = broker.assign("s", [None])[0]
    shown = until(lambda: seen if (seen := worker.board.read(1).activity).progress >= 0.3 else None)
    assert (shown.job_id, shown.epoch, shown.jobs_running) == (*claim, 1)
    assert shown.progress_mono_ns > 0
    broker.result(claim)
    idle = until(lambda: seen if (seen := worker.board.read(1).activity).job_id == 0 else None)
    assert (idle.jobs_done, idle.jobs_running) == (1, 0)
    assert idle.rss_bytes > 1 << 20


def test_metrics_count_outcomes_and_times(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation()}, slots=16).ready()
    claims = broker.assign("s", [None] * 10)
    failing = broker.assign("s", [{"fault": "fail"}, {"fault": "refuse"}])
    for claim in claims:
        broker.result(claim)
    for claim in failing:
        broker.failure(claim)
    worker.say(Notice.STOP)
    worker.ended()
    snapshot = until(lambda: broker.heard(Metrics))[-1]
    assert (snapshot.source, snapshot.generation) == ("cpu-0", 77)
    found = {(sample.name, *sorted(sample.labels.values())): sample for sample in snapshot.samples}
    assert found["empd_attempts_total", "", "completed", "s"].value == 10
    assert found["empd_attempts_total", "failed", "refused", "s"].value == 1
    times = found["empd_attempt_run_seconds", "s"]
    assert times.buckets[-1][1] == 12
    assert times.buckets[-2][0] == 3600.0


def test_a_new_worker_is_small(broker: BrokerDouble, start) -> None:
    worker = start(
        {"s": {"connector": "NoSuchConnector"}}, connectors={"NoSuchConnector": {"path": "no:NoSuchConnector"}}
    ).ready()
    used = psutil.Process(worker.process.pid).memory_full_info().uss
    assert used <= 30 << 20, f"{used / (1 << 20):.1f} MiB"


def test_a_broker_that_forgot_the_worker_is_told_again(broker: BrokerDouble, start) -> None:
    start({"s": simulation(duration_s=0.3)}).ready()
    broker.settling = False
    claim = broker.assign("s", [None])[0]
    broker.send(frames.Error(0, "refused", "say WorkerHello first"))
    hello = broker.wait(frames.WorkerHello, 2)[1]
    assert [tuple(held) for held in hello.held] == [claim]
    assert broker.result(claim) == {"steps": 1}


def test_an_idle_worker_speaks_now_and_then(broker: BrokerDouble, start) -> None:
    """So that a broker that lost sight of it can say so."""
    start({"s": simulation()}).ready()
    before = len(broker.of(frames.Capacity))
    assert broker.wait(frames.Capacity, before + 1)[-1].slots == 1


def test_garbage_from_the_broker_is_dropped(broker: BrokerDouble, start) -> None:
    worker = start({"s": simulation()}).ready()
    for data in (b"", b"\x00", os.urandom(300), b"\x93\x61\x01\x02"):
        broker.router.send_multipart([broker.peer, data])
    assert broker.result(broker.assign("s", [None])[0])
    assert worker.process.poll() is None
