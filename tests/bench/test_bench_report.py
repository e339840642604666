"""The page: complete in itself, and true to its lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from empd.bench import machine, plots, report
from empd.bench.figures import Figure, Plot, Target, median_of
from empd.bench.peers import PEERS
from empd.bench.running import BenchError
from empd.bench.scenarios import SCENARIOS

WHERE = {**machine.describe("/tmp"), "quick": True, "endpoint": ""}


def lines(scenario: str, *figures: Figure) -> list[dict[str, Any]]:
    return [{**figure.as_line(scenario, 2), "machine": WHERE} for figure in figures]


def throughput(batch: int, rate: float, target: Target | None = None) -> Figure:
    axes = {"batch": batch, "durability": "fsync", "workers": 2, "payload_bytes": 100}
    return median_of(f"throughput.fsync.batch{batch}", "jobs/s", [rate, rate * 1.1], axes=axes, target=target)


def test_the_page_has_every_figure_verdict_and_plot(tmp_path: Path) -> None:
    found = lines(
        "throughput",
        throughput(1, 5000.0, Target(35_000, at_least=True, cores=4)),
        throughput(256, 123_456.0, Target(100_000, at_least=True)),
    )
    found += lines("idle", median_of("idle.<cpu>", "% of a core", [0.9], target=Target(0.5), details={"why": "a & b"}))
    page = report.write(found, tmp_path).read_text("utf-8")
    for text in ("throughput.fsync.batch256", "129,629", "≥ 100,000", ">met<", ">missed<", ">machine too small<"):
        assert text in page
    assert "idle.&lt;cpu&gt;" in page
    assert "a &amp; b" in page
    assert "quick sizes" in page
    assert 'id="throughput"' in page
    assert 'id="payload"' not in page, "what was not measured has no section"
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"', page) == [], "nothing is loaded from elsewhere"
    [svg] = tmp_path.glob("*.svg")
    assert svg.name == "throughput.throughput-by-durability-and-batch.svg"


def test_ids_in_the_plots_are_not_shared(tmp_path: Path) -> None:
    found = lines("throughput", throughput(1, 1.0), throughput(256, 2.0))
    found += lines(
        "claim", *(median_of(f"c{n}", "ratio", [1.0], axes={"waiting": n, "others": "own"}) for n in (1000, 10_000))
    )
    page = report.write(found, tmp_path).read_text("utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', page):
        assert used in ids


@pytest.mark.parametrize(
    "plot",
    [
        Plot("upright bars", "peer", "setting"),
        Plot("a line", "waiting", "setting", log_x=True, log_y=True),
    ],
)
def test_a_plot_is_svg(plot: Plot) -> None:
    figures = [
        median_of(
            f"{peer}.{setting}",
            "ms",
            [n + 1.0, n + 2.0],
            target=Target(3),
            axes={"peer": peer, "setting": setting, "waiting": 10 ** (n + 1)},
        )
        for n, peer in enumerate(("a", "b", "c"))
        for setting in ("fast", "durable")
    ]
    svg = plots.draw(plot, lines("peers", *figures))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert plot.title in svg
    assert "durable" in svg
    assert svg == plots.draw(plot, lines("peers", *figures)), "the same figures give the same file"


def test_many_categories_are_rows_with_their_values() -> None:
    names = [f"system {n}" for n in range(12)]
    figures = [median_of(name, "jobs/s", [1000.0 + n], axes={"peer": name}) for n, name in enumerate(names)]
    svg = plots.draw(Plot("rows", "peer"), lines("peers", *figures))
    assert all(name in svg for name in names)
    assert "1,011" in svg


def test_latency_is_shown_by_percentile(tmp_path: Path) -> None:
    details = {"curve_us": [(50.0, 100.0), (99.0, 900.0), (100.0, 1000.0)], "hdr": "encoded"}
    axes = {"percent_of_capacity": 50, "percentile": "p99"}
    figure = median_of("load.p99.at50", "ms", [0.9], axes=axes, details=details)
    page = report.write(lines("load", figure), tmp_path).read_text("utf-8")
    assert "50 % of capacity" in page
    assert "encoded" not in page


def test_a_plot_without_figures_is_left_out(tmp_path: Path) -> None:
    report.write(lines("throughput", throughput(1, 1.0)), tmp_path)
    assert list(tmp_path.glob("*.svg")) == [], "one point is no curve"


@pytest.mark.parametrize("section", [*SCENARIOS.values(), PEERS], ids=lambda one: one.name)
def test_every_section_can_explain_itself(section: Any) -> None:
    assert section.help
    assert len({plot.title for plot in section.plots}) == len(section.plots)
    module = __import__(section.measure.__module__, fromlist=["x"])
    assert len(module.__doc__ or "") > 40


def test_peers_are_not_measured_here() -> None:
    with pytest.raises(BenchError, match="make bench-peers"):
        next(PEERS.measure(None, None))
