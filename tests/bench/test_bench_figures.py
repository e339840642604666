"""What the bench makes of samples, and how it says it."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.bench import machine, report
from empd.bench.figures import Figure, Target, median_of, percentile, rounded

WHERE = {"cores": 4, "cpu": "a processor", "python": "3.11"}
samples_of = st.lists(st.floats(0.001, 1e9), min_size=1)


@given(samples_of, st.integers(1, 100))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], percent: int) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= len(samples) * percent / 100
    assert sum(sample < found for sample in samples) < len(samples) * percent / 100


def test_percentiles_of_a_hundred() -> None:
    samples = list(range(1, 101))
    assert [percentile(samples, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]


@given(st.floats(0.001, 1e9))
def test_rounding_keeps_four_digits(value: float) -> None:
    assert math.isclose(rounded(value), value, rel_tol=0.0006)
    assert len(f"{rounded(value):g}".replace(".", "").lstrip("0").split("e")[0]) <= 6


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(10), 10, True),
        (Target(10), 10.1, False),
        (Target(10, at_least=True), 10, True),
        (Target(10, at_least=True), 9.9, False),
    ],
)
def test_a_target_has_a_right_side(target: Target, value: float, met: bool) -> None:
    assert median_of("x", "ms", [value], target=target).met is met


def test_without_a_target_nothing_is_met_or_missed() -> None:
    figure = median_of("x", "ms", [3.0, 1.0, 2.0])
    line = figure.as_line()
    assert figure.met is None
    assert (line["target"], line["bound"], line["met"]) == (None, None, None)
    assert (line["min"], line["median"], line["max"], line["runs"], line["value"]) == (1, 2, 3, 3, 2)


def test_a_value_that_is_not_the_median_is_kept() -> None:
    line = Figure(name="p99", value=9.0, unit="ms", samples=[1.0, 2.0, 9.0]).as_line()
    assert (line["value"], line["median"]) == (9, 2)


def test_a_line_is_json_and_complete_in_itself() -> None:
    figure = median_of("x.y", "jobs/s", [123456.7], target=Target(1e5, at_least=True), settings={"window": 5})
    out = io.StringIO()
    with redirect_stdout(out):
        report.write_line(figure, WHERE)
        report.write_line(figure, WHERE)
    first, second = out.getvalue().splitlines()
    assert first == second
    line = json.loads(first)
    assert line["value"] == 123457
    assert (line["met"], line["bound"]) == (True, "at least")
    assert line["machine"] == WHERE
    assert line["settings"] == {"window": 5}


def test_the_table_shows_every_figure_and_its_target() -> None:
    figures = [
        median_of("fast", "jobs/s", [123456.0], target=Target(100_000, at_least=True)),
        median_of("slow", "ms", [9.5], target=Target(5)),
        median_of("free", "µs", [1.0]),
    ]
    err = io.StringIO()
    with redirect_stderr(err):
        report.write_table(figures, WHERE)
    shown = err.getvalue()
    for text in ("fast", "123,456 jobs/s", "≥ 100,000", "slow", "9.5 ms", "≤ 5", "free", "a processor"):
        assert text in shown


def test_the_machine_is_described() -> None:
    found = machine.describe("/tmp")
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 20
    assert found["state_filesystem"] != "unknown"
    assert {"cpu", "kernel", "python", "empd", "sqlite", "pyzmq", "msgspec"} <= found.keys()
    assert msgspec.json.encode(found)
