"""Each scenario once, in a size that takes seconds. How fast anything is is not asserted anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from empd.bench import backlog, broker_loss, claim, floors, idle, latency, processes, recovery, startup, throughput
from empd.bench.assignments import Assignments
from empd.bench.daemon import BenchError, Daemon, mapping_of, noop_mapping, wait_until
from empd.bench.figures import Figure


def by_name(figures: Iterable[Figure]) -> dict[str, Figure]:
    found = {figure.name: figure for figure in figures}
    for figure in found.values():
        line = figure.as_line()
        assert line["min"] <= line["median"] <= line["max"]
        assert line["settings"]
    return found


def test_floors(tmp_path: Path) -> None:
    found = by_name(floors.measure(5, str(tmp_path)))
    assert list(found) == ["floor.zmq_echo", "floor.sqlite_commit"]
    assert all(len(figure.samples) == 5 and figure.value > 0 for figure in found.values())
    assert list(tmp_path.iterdir()) == []


def test_throughput(tmp_path: Path) -> None:
    size = throughput.Size(jobs=600, single_jobs=300, runs=2, warm_up_jobs=10, durabilities=("fsync", "memory"))
    found = by_name(throughput.measure(size, str(tmp_path)))
    assert list(found) == [f"throughput.{d}.{m}" for d in ("fsync", "memory") for m in ("batch256", "single")]
    figure = found["throughput.fsync.batch256"]
    assert figure.target == (100_000, True)
    assert len(figure.samples) == 2
    assert {f"{kind}_cpu_us_per_job" for kind in ("client", "broker", "worker", "web")} <= figure.details.keys()
    assert figure.settings["window"] == 20_000
    assert figure.settings["credit"] == 512
    assert found["throughput.memory.single"].target is None


def test_a_run_whose_jobs_fail_is_no_figure(tmp_path: Path) -> None:
    mapping = mapping_of({"noop": {"api_config": {"fault": "refuse"}}}, instances=1)
    with (
        Daemon(mapping, str(tmp_path)) as daemon,
        daemon.client() as client,
        pytest.raises(BenchError, match="3 of 3 jobs did not complete"),
    ):
        throughput.run_once(client, "batch256", 3, 100)


def test_latency(tmp_path: Path) -> None:
    found = by_name(latency.measure(latency.Size(rounds=10, runs=2, warm_up=2), str(tmp_path)))
    suffixes = ("p50", "p99", "p50_to_floor")
    assert list(found) == [
        f"latency.fsync.{suffix}" for suffix in (*suffixes, *(f"back_to_back.{s}" for s in suffixes))
    ]
    assert found["latency.fsync.p50_to_floor"].target == (1.0, False)
    for name in ("latency.fsync", "latency.fsync.back_to_back"):
        p50, p99, ratio = (found[f"{name}.{suffix}"] for suffix in suffixes)
        assert p50.value <= p99.value
        # With two runs each median is a mean: the figures hang together, but not to the last digit.
        assert p50.details["floor_us"] == pytest.approx(
            2 * p50.details["echo_p50_us"] + 2 * p50.details["commit_p50_us"]
        )
        assert (
            min(p50.samples) / p50.details["floor_us"] / 2
            < ratio.value
            < 2 * max(p50.samples) / p50.details["floor_us"]
        )


def test_backlog(tmp_path: Path) -> None:
    size = backlog.Size(waiting=(500, 1500), timed_jobs=10, runs=2)
    found = by_name(backlog.measure(size, str(tmp_path)))
    assert list(found) == ["memory.per_waiting_job.500", "memory.per_waiting_job.1500", "claim.daemon.1500"]
    assert found["claim.daemon.1500"].details["waiting_at_few"] == 10
    assert len(found["claim.daemon.1500"].samples) == 2


def test_the_backlog_waits_while_others_are_served(tmp_path: Path) -> None:
    mapping = mapping_of({"parked": backlog.NO_OP, "noop": backlog.NO_OP}, instances=1)
    with Daemon(mapping, str(tmp_path)) as daemon, daemon.client() as client:
        parked = [worker["name"] for worker in client.status()["workers"] if worker["type"] == "parked"]
        client.operate("drain", parked)
        backlog.fill(daemon, 700, 100)
        assert latency.job_us(client, "noop", 100) > 0
        backlog.settle(client)
        assert client.status()["services"]["parked"]["waiting"] == 700


def test_claim(tmp_path: Path) -> None:
    size = claim.Size(waiting=1_010, rounds=3, runs=2, requirement_sets=4)
    found = by_name(claim.measure(size, str(tmp_path)))
    assert list(found) == ["claim.queue.other_service", "claim.queue.requirement_sets"]
    assert all(figure.details["jobs_not_for_the_asker"] == 1000 for figure in found.values())


def test_recovery_of_a_worker(tmp_path: Path) -> None:
    found = by_name(recovery.measure(recovery.Size(kills=2, workers=2), str(tmp_path)))
    assert list(found) == ["recovery.worker", "recovery.worker.p99"]
    assert len(found["recovery.worker"].samples) == 2
    assert all(sample > 0 for sample in found["recovery.worker"].samples)


def test_recovery_of_the_broker(tmp_path: Path) -> None:
    size = broker_loss.Size(waiting=500, kills=1, job_s=0.05)
    found = by_name(broker_loss.measure(size, str(tmp_path)))
    figure = found["recovery.broker"]
    assert figure.value > 0
    assert figure.details["unfinished_at_the_end"] >= 500


def test_idle(tmp_path: Path) -> None:
    found = by_name(idle.measure(idle.Size(parts=2, part_s=0.2, settle_s=0.1), str(tmp_path)))
    assert list(found) == ["memory.worker", "idle.cpu"]
    assert len(found["memory.worker"].samples) == 2
    assert 0 < found["memory.worker"].value < found["memory.worker"].details["rss_mib"]
    kinds = ("supervisor", "sentinel", "broker", "web", "worker")
    shares = [found["idle.cpu"].details[f"{kind}_percent"] for kind in kinds]
    assert sum(shares) == pytest.approx(found["idle.cpu"].value)


def test_startup(tmp_path: Path) -> None:
    found = by_name(startup.measure(startup.Size(starts=1, helps=1), str(tmp_path)))
    assert list(found) == ["startup.help", "startup.ready"]
    assert found["startup.help"].details["bare_interpreter_ms"] < found["startup.help"].value


# --- the daemon it measures --------------------------------------------------------------------------------------


def test_a_daemon_leaves_nothing_behind(tmp_path: Path) -> None:
    with Daemon(noop_mapping(), str(tmp_path)) as daemon:
        pids = [pid for pids in daemon.pids().values() for pid in pids]
        assert sorted(pids) == sorted(
            [daemon.pids()["supervisor"][0], *processes.descendants(daemon.pids()["supervisor"][0])]
        )
        assert len(pids) == len(set(pids)) >= 5
        assert all(map(psutil.pid_exists, pids))
        assert daemon.ready_s > 0
        assert daemon.cpu_s().keys() >= {"supervisor", "broker", "web", "worker", "client"}
    # The sentinel ends by itself when it sees that the supervisor has gone.
    wait_until(lambda: not any(map(processes.exists, pids)), "every process to end", 10)
    assert list(tmp_path.iterdir()) == []
    assert not daemon.runtime_dir.exists()


def test_a_daemon_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no-such-durability"):
        Daemon(noop_mapping(), str(tmp_path), durability="no-such-durability").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_claims_are_seen_as_they_are_journaled(tmp_path: Path) -> None:
    with Daemon(noop_mapping(1), str(tmp_path)) as daemon, daemon.client() as client, Assignments(daemon) as seen:
        job = client.submit("noop", None)
        found = seen.next(lambda one: job.number in one.ids, "the claim", 10)
        assert job.status().worker == found.worker
        assert found.boot == client.status()["boot"]
        assert found.at_ns <= found.seen_ns
        with pytest.raises(BenchError, match="a claim that never comes"):
            seen.next(lambda one: False, "a claim that never comes", 0.05)


def test_waiting_has_a_limit() -> None:
    looks = iter([0, 0, "found"])
    assert wait_until(lambda: next(looks), "the third look") == "found"
    with pytest.raises(BenchError, match=r"waited 0\.01 s in vain for nothing"):
        wait_until(lambda: 0, "nothing", 0.01)
