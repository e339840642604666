"""Each scenario once, in a size that takes seconds. How fast anything is is not asserted anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil
import pytest

from empd.bench import floors, histogram, plots, processes
from empd.bench.assignments import Assignments
from empd.bench.daemon import Daemon, Where, mapping_of, noop_mapping
from empd.bench.figures import Figure
from empd.bench.run import Plan, run
from empd.bench.running import BenchError, Running, rest, wait_until
from empd.bench.scenario import (
    backlog,
    broker_loss,
    claim,
    connector,
    cost,
    cost_journal,
    daemon_loss,
    growth,
    idle,
    latency,
    load,
    payload,
    recovery,
    startup,
    status,
    throughput,
)
from empd.bench.scenarios import SCENARIOS


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(str(tmp_path))


def by_name(figures: Iterable[Figure]) -> dict[str, Figure]:
    listed = list(figures)
    found = {figure.name: figure for figure in listed}
    assert len(found) == len(listed), "no two figures have one name"
    for figure in listed:
        line = figure.as_line("", 2)
        assert line["min"] <= line["median"] <= line["max"]
        assert figure.settings, f"{figure.name} does not say how it was measured"
    return found


def has_its_plots(scenario: str, found: dict[str, Figure]) -> None:
    """Each plot of the scenario shows something of what it gave."""
    lines = [figure.as_line(scenario, 2) for figure in found.values()]
    shown = {plot.title: len(plots.fitting(plot, lines)) for plot in SCENARIOS[scenario].plots}
    assert shown
    assert all(count > 1 or title.startswith("kill -9 of the broker") for title, count in shown.items()), shown


def test_floors(where: Where, tmp_path: Path) -> None:
    found = by_name(floors.measure(floors.Size(rounds=5, runs=2), where))
    has_its_plots("floors", found)
    assert list(found) == ["floor.zmq_echo", "floor.zmq_brokered_echo", "floor.sqlite_commit"]
    assert all(len(figure.samples) == 2 and figure.value > 0 for figure in found.values())
    assert list(tmp_path.iterdir()) == []


# --- throughput ------------------------------------------------------------------------------------------------------


def test_throughput_varies_one_axis_at_a_time() -> None:
    names = [point.name for point in throughput.points(throughput.Size())]
    assert len(names) == len(set(names)) == 13
    for name in (
        "fsync.batch16",
        "fsync.batch256.workers4",
        "fsync.batch256.payload65536",
        "memory.batch1",
        "os.batch16",
    ):
        assert f"throughput.{name}" in names
    assert set(throughput.TARGETS) <= set(throughput.points(throughput.Size())), "every bound is measured"


def test_the_matrix_has_every_combination_and_keeps_those_of_a_daemon_together() -> None:
    size = throughput.Size(matrix=True)
    points = throughput.points(size)
    assert len(points) == len(set(points)) == 3 * 3 * 3 * 3
    daemons = [point[:2] for point in points]
    assert sum(one != other for one, other in pairwise(daemons)) == 9 - 1
    assert {point.durability for point in throughput.points(size, running=True)} == {""}


def test_throughput(where: Where) -> None:
    size = throughput.Size(
        jobs=600,
        runs=2,
        warm_up_jobs=10,
        durabilities=("fsync", "memory"),
        batches=(1, 256),
        workers=(1,),
        payloads=(100,),
    )
    found = by_name(throughput.measure(size, where))
    ends = ("batch1.workers1", "batch256.workers1")
    assert list(found) == [f"throughput.{d}.{end}" for d in ("fsync", "memory") for end in ends]
    figure = found["throughput.fsync.batch256.workers1"]
    assert len(figure.samples) == 2
    assert {f"{kind}_cpu_us_per_job" for kind in ("client", "broker", "worker", "web")} <= figure.details.keys()
    assert figure.details["jobs_per_commit"] > 1
    assert figure.settings == {"window": 20_000, "credit": 512}


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_a_run_whose_jobs_fail_is_no_figure(failing: Running, batch: int) -> None:
    with failing.client() as client, pytest.raises(BenchError, match="300 of 300 jobs did not complete"):
        throughput.Load(client, "noop", batch).run(300)
    with failing.client() as client, pytest.raises(BenchError, match="3 of them without a result"):
        load.OpenLoop(client, "noop", 10, seed=1).run(3, float("inf"))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Running]:
    """A daemon whose no-op service refuses every job."""
    mapping = mapping_of({"noop": {"api_config": {"fault": "refuse"}}}, instances=1, max_concurrent_jobs=512)
    with Daemon(mapping, str(tmp_path_factory.mktemp("failing"))) as daemon:
        yield daemon


def test_each_cell_of_the_matrix_is_measured(where: Where) -> None:
    size = throughput.Size(
        jobs=256,
        runs=1,
        warm_up_jobs=10,
        durabilities=("os", "memory"),
        batches=(1, 256),
        workers=(1, 2),
        payloads=(100, 4096),
        matrix=True,
    )
    found = by_name(throughput.measure(size, where))
    assert {tuple(figure.axes.values()) for figure in found.values()} == set(throughput.points(size))
    assert all(figure.value > 0 for figure in found.values())


# --- latency ---------------------------------------------------------------------------------------------------------


def test_latency(where: Where) -> None:
    size = latency.Size(rounds=20, runs=1, warm_up=2, durabilities=("fsync",))
    found = by_name(latency.measure(size, where))
    has_its_plots("latency", found)
    suffixes = ("floor", "p50", "p99", "p50_to_floor", "p50_to_brokered_floor")
    assert list(found) == [f"latency.fsync.{s}" for s in (*suffixes, *(f"back_to_back.{s}" for s in suffixes))]
    assert found["latency.fsync.p50_to_floor"].target == (1.0, False, 4)
    for name in ("latency.fsync", "latency.fsync.back_to_back"):
        least, p50, p99, ratio, _ = (found[f"{name}.{suffix}"] for suffix in suffixes)
        assert p50.value <= p99.value
        floor = p50.details["floor_us"]
        assert floor == least.value == pytest.approx(2 * p50.details["echo_p50_us"] + 2 * p50.details["commit_p50_us"])
        assert ratio.value == pytest.approx(p50.value / floor)


def test_floors_count_commits_by_durability() -> None:
    samples = latency.Samples([10.0], [15.0], [100.0], [500.0])
    assert [samples.floor(latency.COMMITS[durability]) for durability in ("fsync", "memory")] == [220, 20]
    assert samples.brokered_floor(2) == 215


def test_latency_under_load(where: Where) -> None:
    size = load.Size(percents=(5,), seconds=0.1, runs=2, capacity_jobs=300, jobs_max=100)
    found = by_name(load.measure(size, where))
    has_its_plots("load", found)
    assert list(found) == ["load.capacity", "load.p50.at5", "load.p99.at5"]
    p99 = found["load.p99.at5"]
    assert found["load.p50.at5"].value <= p99.value
    assert histogram.decoded(p99.details["hdr"]).get_total_count() == 2 * p99.settings["jobs"]


def test_a_stall_counts_for_every_job_that_should_have_come_meanwhile(where: Where) -> None:
    with where.daemon(noop_mapping(1)) as daemon, daemon.client() as client:
        loop = load.OpenLoop(client, "noop", 10, seed=1)
        submit, stalls = client.submit, iter([0.2])

        def stalling(*arguments: object) -> object:
            rest(next(stalls, 0.0))
            return submit(*arguments)  # type: ignore[arg-type]

        client.submit = stalling  # type: ignore[method-assign,assignment]
        times = loop.run(50, 1000.0)
    assert len(times.latency) == len(times.lateness) == 50
    # 200 ms at 1,000/s: nearly all 50 were due while the first stood, and each is charged for its wait.
    assert sum(latency_us > 50_000 for latency_us in times.latency) > 30


# --- the others ------------------------------------------------------------------------------------------------------


def test_backlog(where: Where) -> None:
    size = backlog.Size(waiting=(500, 1500), timed_jobs=10, runs=2)
    found = by_name(backlog.measure(size, where))
    has_its_plots("backlog", found)
    assert list(found) == [
        f"{name}.{waiting}" for waiting in (500, 1500) for name in ("memory.per_waiting_job", "claim.daemon")
    ]
    assert found["claim.daemon.1500"].details["waiting_at_few"] == 10
    assert len(found["claim.daemon.1500"].samples) == 2
    assert found["memory.per_waiting_job.1500"].details["broker_uss_bytes"] > 1 << 20


def test_the_backlog_waits_while_others_are_served(where: Where) -> None:
    mapping = mapping_of({"parked": backlog.NO_OP, "noop": backlog.NO_OP}, instances=1)
    with where.daemon(mapping) as daemon, daemon.client() as client:
        parked = [worker["name"] for worker in client.status()["workers"] if worker["type"] == "parked"]
        client.operate("drain", parked)
        backlog.fill(daemon, 700, 100)
        assert latency.job_us(client, "noop", 100) > 0
        backlog.settle(daemon)
        assert client.status()["services"]["parked"]["waiting"] == 700


def test_claim(where: Where) -> None:
    size = claim.Size(waiting=(100, 1_010), rounds=3, runs=2, sets=4)
    found = by_name(claim.measure(size, where))
    has_its_plots("claim", found)
    assert list(found) == [f"claim.queue.{kind}.{count}" for kind in claim.KINDS for count in (100, 1010)]
    assert all(figure.details["other_jobs"] == figure.axes["waiting"] - 10 for figure in found.values())


def test_the_others_of_a_claim_are_those_that_it_must_not_take() -> None:
    for kind in claim.KINDS:
        bench = claim.Bench(at_limit=kind == "limit_reached")
        for options in claim.others(kind, 4):
            bench.submit(options, 50)
        waiting = len(bench.queue.state.jobs) - bench.held
        bench.round()
        left = [job.options.spec for job in bench.queue.state.jobs.values()]
        assert len(left) - bench.held == waiting
        assert all(spec.priority != 60 for spec in left), f"{kind}: the asker's own ten were taken, and no other"


def test_payload(where: Where, tmp_path: Path) -> None:
    size = payload.Size(payloads=(100_000, 300_000), bytes_per_run=300_000, runs=2)
    found = by_name(payload.measure(size, where))
    has_its_plots("payload", found)
    for way in payload.WAYS:
        assert found[f"payload.{way}.100000"].value > 0
    ratio = found["payload.volatile_to_bare.300000"]
    rates = [found[f"payload.{way}.300000"].samples for way in ("volatile", "bare_tmpfs")]
    assert list(ratio.samples) == [one / two for one, two in zip(*rates, strict=True)]
    assert found["payload.broker_cpu.100000"].value > 0
    slope, ratio = found["payload.broker_cpu.slope"], found["payload.broker_cpu.slope_to_copy"]
    assert ratio.value == pytest.approx(slope.value / ratio.details["copy_us_per_mib"])
    assert ratio.target == payload.UNTOUCHED_TARGET
    assert list(tmp_path.iterdir()) == []


def test_recovery_of_a_worker(where: Where) -> None:
    found = by_name(recovery.measure(recovery.Size(kills=2, workers=2), where))
    has_its_plots("recovery", found)
    assert list(found) == ["recovery.worker", "recovery.worker.p99"]
    assert len(found["recovery.worker"].samples) == 2
    assert all(sample > 0 for sample in found["recovery.worker"].samples)


def test_recovery_of_the_broker(where: Where) -> None:
    found = by_name(broker_loss.measure(broker_loss.Size(kills=((500, 1),), job_s=0.05), where))
    has_its_plots("broker_loss", found)
    figure = found["recovery.broker.500"]
    assert figure.value > 0
    assert figure.details["unfinished_at_the_end"] >= 500


def test_recovery_of_the_whole_daemon(where: Where, tmp_path: Path) -> None:
    found = by_name(daemon_loss.measure(daemon_loss.Size(waiting=300, losses=1), where))
    has_its_plots("daemon_loss", found)
    assert list(found) == ["recovery.supervisor", "recovery.box"]
    assert all(figure.details["jobs_lost"] == 0 and figure.value > 0 for figure in found.values())
    assert list(tmp_path.iterdir()) == []


def test_status_under_load(where: Where) -> None:
    found = by_name(status.measure(status.Size(pairs=2, jobs=2000, requests_per_s=50), where))
    has_its_plots("status", found)
    assert list(found) == [
        "status.p50",
        "status.p99",
        "status.throughput.alone",
        "status.throughput.asked",
        "status.loss",
        "status.loss_at_most",
    ]
    assert found["status.p99"].settings["requests"] == len(found["status.p99"].samples) >= 2
    loss = found["status.loss"]
    assert loss.details["low_percent"] <= loss.value <= loss.details["high_percent"]


def test_a_page_that_fails_is_no_figure(where: Where) -> None:
    with where.daemon(noop_mapping(1)) as daemon, pytest.raises(BenchError, match="/no/such/page failed"):
        next(status.measure(status.Size(pairs=1, jobs=300, path="/no/such/page"), Where(running=daemon)))


def test_cost(where: Where) -> None:
    found = by_name(cost.measure(cost.Size(jobs=600, alone_jobs=20, runs=2), where))
    has_its_plots("cost", found)
    modes, parts = ("batch256", "single", "alone"), (*cost.KINDS, "journal", "total", "written")
    assert set(found) == {"cost.history", *(f"cost.{mode}.{part}" for mode in modes for part in parts)}
    assert found["cost.history"].value > 20, "an id and a time at least"
    assert found["cost.alone.broker"].value > found["cost.batch256.broker"].value > 0
    assert found["cost.alone.journal"].value > found["cost.batch256.journal"].value > 0, "a commit for many, or for one"
    assert found["cost.batch256.written"].value > 100, "each payload is written once at least"


def test_the_journal_is_charged_in_as_many_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appended again row by row it would cost many times what it does."""
    commits: list[int] = []
    real = cost_journal.SqliteJournal.commit

    def commit(journal: cost_journal.SqliteJournal) -> int:
        commits.append(journal.last_seq)
        return real(journal)

    monkeypatch.setattr(cost_journal.SqliteJournal, "commit", commit)
    rows = [cost_journal.Row(seq, 1, 2, 3, b"body") for seq in range(101, 111)]
    assert cost_journal.again_s(rows, 4, str(tmp_path)) > 0
    assert commits == [0, 3, 6, 9], "ten rows in four commits, numbered anew"
    assert list(tmp_path.iterdir()) == []


def test_rows_that_were_trimmed_are_written_again(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = cost_journal.Written.so_far, iter([None])
    monkeypatch.setattr(cost_journal.Written, "so_far", lambda written: next(seen, real(written)))
    done: list[int] = []
    with where.daemon(noop_mapping(1)) as daemon, daemon.client() as client:
        load = throughput.Load(client, daemon.service)

        def run(count: int) -> None:
            done.append(count)
            load.run(count)

        assert len(cost_journal.journal_us(daemon, where.place, run, 300, 2)) == 2
        assert done == [300, 300]
        monkeypatch.setattr(cost_journal.Written, "so_far", lambda written: None)
        with pytest.raises(BenchError, match="trimmed"):
            cost_journal.journal_us(daemon, where.place, run, 300, 2)
    assert len(done) == 2 + cost_journal.ATTEMPTS


def test_a_connector_beside_bare_requests(where: Where) -> None:
    found = by_name(connector.measure(connector.Size(jobs=80, at_once=8, alone=3, runs=2, cancels=3), where))
    has_its_plots("connector", found)
    answers, cancels = ("empd", "bare", "to_bare", "added"), ("polled", "polled.max", "plain", "plain.max")
    assert list(found) == [
        *(f"connector.{answer}.{part}" for answer in connector.ANSWERS for part in answers),
        *(f"connector.cancel.{part}" for part in cancels),
    ]
    for part in cancels:
        figure = found[f"connector.cancel.{part}"]
        assert len(figure.samples) == 3
        assert min(figure.samples) > 0
    assert found["connector.cancel.polled.max"].value == max(found["connector.cancel.polled"].samples)
    # 8 at once, each of 10 ms: nobody can have more than 800 a second.
    assert found["connector.after_10ms.bare"].value < 8 / 0.01
    assert found["connector.after_10ms.empd"].value < 8 / 0.01


def test_growth(where: Where) -> None:
    size = growth.Size(
        rates=(100, 200), seconds=0.2, workers=(1, 2), jobs=300, waiting=(100, 200), timed_jobs=5, rounds=2, runs=1
    )
    found = by_name(growth.measure(size, where))
    has_its_plots("growth", found)
    slopes = [f"growth.{what}.slope" for what in ("load", "workers", "backlog", "memory")]
    assert [name for name in found if name.endswith("slope")] == slopes
    first, second = (found[f"growth.workers.{count}"].value for count in (1, 2))
    assert found["growth.workers.slope"].value == pytest.approx(second - first)


def test_idle(where: Where) -> None:
    found = by_name(idle.measure(idle.Size(parts=2, part_s=0.2, settle_s=0.1), where))
    has_its_plots("idle", found)
    kinds = ("supervisor", "broker", "worker", "web", "telemetry", "sentinel")
    assert list(found)[:2] == ["memory.worker", "idle.cpu"]
    assert set(found) <= {"memory.worker", "idle.cpu", *(f"idle.cpu.{kind}" for kind in kinds)}
    assert len(found["memory.worker"].samples) == 2
    assert 0 < found["memory.worker"].value < found["memory.worker"].details["rss_mib"]
    shares = [figure.value for name, figure in found.items() if name.startswith("idle.cpu.")]
    assert len(shares) >= 4
    assert sum(shares) == pytest.approx(found["idle.cpu"].value)


def test_startup(where: Where) -> None:
    found = by_name(startup.measure(startup.Size(starts=1, helps=1), where))
    has_its_plots("startup", found)
    assert list(found) == ["startup.help", "startup.ready"]
    assert found["startup.help"].details["bare_interpreter_ms"] > 0


# --- a plan ----------------------------------------------------------------------------------------------------------


def test_a_plan_changes_sizes() -> None:
    size = Plan(quick=True, runs=9, matrix=True).size(SCENARIOS["throughput"])
    assert (size.runs, size.matrix, size.jobs) == (9, True, throughput.QUICK.jobs)
    assert Plan(runs=9, matrix=True).size(SCENARIOS["idle"]) == idle.Size()


def test_a_plan_names_scenarios_that_are(where: Where) -> None:
    assert [one.name for one in Plan().chosen()] == list(SCENARIOS)
    assert [one.name for one in Plan(scenarios=("idle", "claim")).chosen()] == ["floors", "claim", "idle"]
    with pytest.raises(BenchError, match="no scenario nonsense"):
        Plan(scenarios=("nonsense",)).chosen()


@pytest.mark.parametrize("quick", [True, False])
def test_every_scenario_has_sizes_of_one_kind(quick: bool) -> None:
    for scenario in SCENARIOS.values():
        assert type(Plan(quick=quick).size(scenario)) is type(scenario.full) is type(scenario.quick)


def test_a_daemon_that_runs_is_measured_where_it_is(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = throughput.Size(jobs=300, runs=1, warm_up_jobs=10, batches=(256,), payloads=(100,))
    monkeypatch.setitem(SCENARIOS, "throughput", SCENARIOS["throughput"]._replace(full=tiny))
    monkeypatch.setitem(SCENARIOS, "floors", SCENARIOS["floors"]._replace(full=floors.Size(rounds=2, runs=1)))
    with where.daemon(mapping_of({"mine": {"api_config": {"duration_s": 0}}}, instances=1)) as daemon:
        plan = Plan(scenarios=("throughput",), endpoint=daemon.endpoint, service="mine", place=where.place)
        lines = [line for line in run(plan) if line["scenario"] == "throughput"]
        assert [line["name"] for line in lines] == ["throughput.running.batch256"]
        assert lines[0]["details"]["broker_cpu_us_per_job"] > 0
        assert lines[0]["machine"]["endpoint"] == daemon.endpoint
        assert daemon.children(), "it goes on"


def test_another_program_gets_lines_alone(tmp_path: Path) -> None:
    plan = msgspec.json.encode(Plan(scenarios=("floors",), quick=True, place=str(tmp_path))).decode()
    ended = subprocess.run([sys.executable, "-m", "empd.bench.run", plan], capture_output=True, check=True)
    assert [json.loads(line)["scenario"] for line in ended.stdout.splitlines()] == ["floors"] * 3


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
    wait_until(lambda: not any(map(processes.exists, pids)), "every process to end", 30)
    assert list(tmp_path.iterdir()) == []
    assert not daemon.runtime_dir.exists()
    assert not daemon.volatile_dir.exists()


def test_a_daemon_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    with Daemon(noop_mapping(1), str(tmp_path)) as daemon:
        assert daemon.volatile_dir.exists()
        daemon.kill_box()
        assert not daemon.runtime_dir.exists()
    assert list(tmp_path.iterdir()) == []
    assert not daemon.volatile_dir.exists()


def test_a_daemon_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no-such-durability"):
        Daemon(noop_mapping(), str(tmp_path), durability="no-such-durability").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_claims_are_seen_as_they_are_journaled(tmp_path: Path) -> None:
    with Daemon(noop_mapping(1), str(tmp_path)) as daemon, daemon.client() as client, Assignments(daemon) as seen:
        job = client.submit("noop", None)
        found = seen.next(lambda one: job.number in one.ids, "the claim", 30)
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


def test_the_clock_of_a_process_counts_its_work() -> None:
    before = processes.cpu_s(os.getpid())
    while processes.cpu_s(os.getpid()) < before + 0.01:
        pass
    with pytest.raises(ProcessLookupError):
        processes.cpu_s(2**22 + 1)
