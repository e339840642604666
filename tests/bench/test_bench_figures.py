"""What the bench makes of samples, and how it says it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.bench import figures, histogram, machine
from empd.bench.figures import Figure, Target, median_of, percentile, rounded, slope, thinned

samples_of = st.lists(st.floats(0.001, 1e9), min_size=1)


@settings(deadline=None)
@given(samples_of, st.integers(1, 100))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], percent: int) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= len(samples) * percent / 100
    assert sum(sample < found for sample in samples) < len(samples) * percent / 100


def test_percentiles_of_a_hundred() -> None:
    samples = list(range(1, 101))
    assert [percentile(samples, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]


@settings(deadline=None)
@given(st.floats(0.001, 1e9))
def test_rounding_keeps_four_digits(value: float) -> None:
    assert math.isclose(rounded(value), value, rel_tol=0.0006)
    assert len(f"{rounded(value):g}".replace(".", "").lstrip("0").split("e")[0]) <= 6


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1e9), min_size=1, max_size=900))
def test_a_line_keeps_so_many_samples_that_both_ends_are_there(samples: list[float]) -> None:
    kept = thinned(samples)
    assert len(kept) == min(len(samples), figures.SAMPLES_KEPT_MAX)
    assert set(kept) <= set(samples)
    assert (min(kept), max(kept)) == (min(samples), max(samples))


@settings(deadline=None)
@given(st.integers(-50, 50), st.integers(-50, 50))
def test_the_slope_of_a_line_is_its_slope(grown: int, begin: int) -> None:
    assert slope([(x, begin + grown * x) for x in (1, 2, 5)]) == pytest.approx(grown)


@pytest.mark.parametrize(
    ("target", "value", "cores", "verdict"),
    [
        (Target(10), 10, 1, "met"),
        (Target(10), 10.1, 1, "missed"),
        (Target(10, at_least=True), 10, 1, "met"),
        (Target(10, at_least=True), 9.9, 1, "missed"),
        (Target(10, cores=4), 11, 4, "missed"),
        (Target(10, cores=4), 11, 2, "machine too small"),
        (Target(10, cores=4), 9, 2, "met"),
    ],
)
def test_a_bound_has_a_right_side_and_a_machine(target: Target, value: float, cores: int, verdict: str) -> None:
    assert median_of("x", "ms", [value], target=target).as_line("s", cores)["verdict"] == verdict


def test_without_a_bound_there_is_no_verdict() -> None:
    line = median_of("x", "ms", [3.0, 1.0, 2.0]).as_line("s", 4)
    assert (line["target"], line["bound"], line["verdict"]) == (None, None, None)
    assert (line["min"], line["median"], line["max"], line["runs"], line["value"]) == (1, 2, 3, 3, 2)


def test_a_value_that_is_not_the_median_is_kept() -> None:
    line = Figure(name="p99", value=9.0, unit="ms", samples=[1.0, 2.0, 9.0]).as_line("s", 4)
    assert (line["value"], line["median"]) == (9, 2)


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (median_of("x", "jobs/s", [1.0]), True),
        (median_of("x", "µs", [1.0]), False),
        (median_of("x", "ratio", [1.0], target=Target(3, at_least=True)), True),
        (median_of("x", "ratio", [1.0], target=Target(3)), False),
    ],
)
def test_which_way_is_better(figure: Figure, expected: bool) -> None:
    assert figure.more_is_better is expected


def test_a_line_is_plain_data() -> None:
    figure = median_of("x.y", "jobs/s", [123456.7], target=Target(1e5, at_least=True), settings={"window": 5})
    line = figure.as_line("throughput", 4)
    assert json.loads(msgspec.json.encode(line)) == line
    assert (line["scenario"], line["value"], line["bound"]) == ("throughput", 123457, "≥ 100,000")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1, 1e8), min_size=1, max_size=300))
def test_a_histogram_keeps_three_digits_through_its_encoding(samples: list[float]) -> None:
    found = histogram.decoded(histogram.encoded(histogram.of(samples)))
    for percent in (50, 99, 100):
        exact = int(sorted(samples)[max(int(percent / 100 * len(samples) + 0.5), 1) - 1])
        assert math.isclose(found.get_value_at_percentile(percent), exact, rel_tol=0.002, abs_tol=1)
    curve = [value for _, value in histogram.curve(found)]
    assert curve == sorted(curve)


def test_times_out_of_range_count_at_its_ends() -> None:
    found = histogram.of([0.0, 1e12])
    assert found.get_total_count() == 2
    assert found.get_value_at_percentile(100) == pytest.approx(histogram.HIGHEST_US, rel=0.001)


def test_the_machine_is_described() -> None:
    found = machine.describe("/tmp")
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 20
    assert found["state_filesystem"] != "unknown"
    assert {"cpu", "kernel", "python", "empd", "commit", "sqlite", "pyzmq", "msgspec"} <= found.keys()
    assert msgspec.json.encode(found)


def test_there_is_no_commit_outside_a_checkout(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) == ""
