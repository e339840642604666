"""/metrics: one family for each name, counters that never fall over generations, series of the dead dropped."""

from __future__ import annotations

import zmq
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from web_broker import BrokerDouble
from web_harness import Web, wait_for

from empd.lifecycle import ChildKind, Exit
from empd.memory.board import Board, Gauges, Identity, SlotState
from empd.web.metrics import Metrics as Shown
from empd.web.series import BUCKETS, Key, Snapshots, Tally, Value
from empd.wire import codec
from empd.wire.telemetry import Metrics, Sample

S = 1_000_000_000


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def total(snapshots: Snapshots, name: str) -> float:
    return sum(value.value for key, value in snapshots.values() if key.name == name)


def counter(value: float, name: str = "empd_things_total", **labels: str) -> Sample:
    return Sample("counter", name, labels, value)


def test_counters_go_on_over_a_generation_change() -> None:
    snapshots = Snapshots()
    snapshots.update(Metrics("gpu0", 1, [counter(5), Sample("gauge", "empd_g", {}, 3)]), 0)
    snapshots.update(Metrics("gpu0", 2, []), 1)
    assert total(snapshots, "empd_things_total") == 5
    assert total(snapshots, "empd_g") == 0  # gauges are of the living generation only
    snapshots.update(Metrics("gpu0", 2, [counter(2)]), 2)
    assert total(snapshots, "empd_things_total") == 7
    snapshots.update(Metrics("gpu0", 1, [counter(6)]), 3)  # late, of a former generation
    assert total(snapshots, "empd_things_total") == 7


def test_histograms_go_on_over_a_generation_change() -> None:
    snapshots = Snapshots()
    first = Sample("histogram", "empd_h", {}, 2.5, [(1.0, 1), (5.0, 2)])
    snapshots.update(Metrics("gpu0", 1, [first]), 0)
    snapshots.update(Metrics("gpu0", 2, [Sample("histogram", "empd_h", {}, 1.0, [(1.0, 1), (5.0, 1)])]), 1)
    [(_, value)] = list(snapshots.values())
    assert value == Value(3.5, ((1.0, 2), (5.0, 3)))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 100)), max_size=40))
def test_counters_never_fall_whatever_order_generations_come_in(steps: list[tuple[int, int]]) -> None:
    snapshots = Snapshots()
    seen = 0.0
    for generation, value in steps:
        snapshots.update(Metrics("w", generation, [counter(value)]), 0)
        now = total(snapshots, "empd_things_total")
        assert now >= seen
        seen = now


def test_sources_that_are_gone_take_their_series_with_them() -> None:
    snapshots = Snapshots()
    snapshots.update(Metrics("gpu0", 1, [counter(1)]), 10 * S)
    snapshots.update(Metrics("gpu1", 1, [counter(1)]), 10 * S)
    snapshots.update(Metrics("gpu2", 1, [counter(1)]), 99 * S)
    assert snapshots.drop_gone(["gpu0"], 50 * S) == ["gpu1"]
    assert {dict(key.labels)["source"] for key, _ in snapshots.values()} == {"gpu0", "gpu2"}


def test_what_is_no_metric_is_rejected_and_counted() -> None:
    snapshots = Snapshots()
    bad = [
        Sample("counter", "0bad", {}, 1),
        Sample("weird", "empd_a", {}, 1),
        Sample("counter", "empd_b", {"le": "1"}, 1),
        Sample("counter", "empd_c", {"a b": "1"}, 1),
        Sample("gauge", "empd_d", {}, float("nan")),
    ]
    snapshots.update(Metrics("x", 1, [*bad, counter(1)]), 0)
    assert snapshots.rejected == 5
    assert len(list(snapshots.values())) == 1


@given(st.lists(st.floats(0, 10_000), max_size=50))
def test_tally_histograms_are_cumulative(values: list[float]) -> None:
    tally = Tally()
    tally.observe("empd_h", (), values)
    [(_, shown)] = list(tally.values())
    assert shown.buckets[-1] == (float("inf"), len(values))
    for bound, count in shown.buckets:
        assert count == sum(value <= bound for value in values)
    assert BUCKETS[-1] == 3600


def test_board_shows_states_restarts_and_gpus() -> None:
    board = Board.create(8)
    board.writer(1, Identity).write(
        Identity(ChildKind.WORKER, "gpu0", 1, 1, SlotState.READY, 1, 3, Exit.CRASHED, 9, "GPU-abc")
    )
    board.writer(1, Gauges).write(Gauges(5, 40, 1 << 30, 2 << 30, 60, 70_000, 1_000_000))
    board.writer(2, Identity).write(Identity(ChildKind.WORKER, "gpu1", 2, 1, SlotState.DEAD))
    found = samples(Shown(board).render())
    gpu = frozenset({("gpu_uuid", "GPU-abc")})
    assert found["empd_gpu_utilisation_ratio", gpu] == 0.4
    assert found["empd_gpu_power_watts", gpu] == 70
    assert found["empd_gpu_energy_joules_total", gpu] == 1000
    worker = {("kind", "worker"), ("worker", "gpu0")}
    assert found["empd_worker_restarts_total", frozenset(worker)] == 3
    assert found["empd_worker_state", frozenset({*worker, ("state", "ready")})] == 1
    assert not any(("worker", "gpu1") in labels for _, labels in found)
    board.close()


def test_a_name_has_one_kind_and_one_family() -> None:
    board = Board.create(2)
    shown = Shown(board)
    shown.snapshots.update(Metrics("a", 1, [counter(1, "empd_x_total"), Sample("gauge", "empd_x", {}, 9)]), 0)
    shown.snapshots.update(Metrics("b", 1, [counter(2, "empd_x_total")]), 0)
    text = shown.render()
    assert text.count(b"# TYPE empd_x_total counter") == 1
    assert sum(value for (name, _), value in samples(text).items() if name == "empd_x_total") == 3
    board.close()


def test_metrics_of_a_running_process(web: Web, broker: BrokerDouble) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(f"ipc://{web.runtime_dir}/telemetry.sock")
        socket.send(codec.encode(Metrics("gpu0", 7, [counter(5)])))
        socket.send(codec.encode(Metrics("gpu0", 8, [counter(1)])))
        web.ask("POST", "/v1/jobs?wait=5", [{"service": "echo"}, {"service": "echo"}])
        key = ("empd_things_total", frozenset({("source", "gpu0")}))
        wait_for(lambda: samples(web.ask("GET", "/metrics").body).get(key) == 6, "both generations together")
    ended = (
        "empd_jobs_total",
        frozenset({("service", "echo"), ("outcome", "completed"), ("status", "completed"), ("cause", "")}),
    )
    wait_for(lambda: samples(web.ask("GET", "/metrics").body).get(ended) == 2, "the ended jobs")
    answer = web.ask("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.body)
    assert found["empd_broker_up", frozenset()] == 1
    assert found["empd_queue_depth", frozenset({("service", "echo"), ("lane", "waiting")})] == 3
    assert found["empd_queue_oldest_age_seconds", frozenset({("service", "echo")})] == 1.5
    run = {("service", "echo"), ("le", "3600.0")}
    assert found["empd_job_run_seconds_bucket", frozenset(run)] == 2


def test_key_is_a_value() -> None:
    assert Key("gauge", "a", ()) == Key("gauge", "a", ())
