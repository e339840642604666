"""The page: complete in itself, and true to its lines."""

from __future__ import annotations

import re
from itertools import product
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


def test_the_page_says_what_empd_is_and_how_each_section_is_measured(tmp_path: Path) -> None:
    found = lines("throughput", throughput(256, 1.0)) + lines("growth", median_of("growth.x", "ms", [1.0]))
    page = report.write(found, tmp_path).read_text("utf-8")
    assert "empd is a daemon for one GPU box" in page
    for definition in (
        "<code>Client</code>, in one client process",
        "every result delivered to its handle",
        "Settings as shipped, with every feature on",
        "does nothing, without a GPU",
        "20,000 jobs submitted and not ended (window); 512 jobs at once in a worker (credit)",
    ):
        assert definition in page
    assert "<code>make bench</code>" in page
    assert "A run begins with the first submit" in page
    assert page.index("A run begins") < page.index("<details>"), "and not only when asked for"
    assert "<pre>load      CPU of all processes" in page, "what is laid out in columns stays so"
    assert "`" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_what_a_value_is_of_its_samples_is_said_where_it_is_not_the_median(tmp_path: Path) -> None:
    found = lines("recovery", Figure(name="p", value=9.0, unit="ms", samples=[1.0, 9.0], statistic="p99"))
    assert "<td class=n>2 (p99)</td>" in report.write(found, tmp_path).read_text("utf-8")
    del found[0]["statistic"]
    assert "<td class=n>2</td>" in report.write(found, tmp_path).read_text("utf-8"), "a file of before"


def test_a_machine_is_named_once_with_how_busy_it_was(tmp_path: Path) -> None:
    found = lines("floors", *(median_of(name, "µs", [1.0]) for name in ("a", "b", "c")))
    for line, load in zip(found, (0.5, 2.5, 1.0), strict=True):
        line["machine"] = {**WHERE, "load_before": load}
    page = report.write(found, tmp_path / "one").read_text("utf-8")
    assert page.count("cores of") == 1
    assert "load 0.5 to 2.5 before the start" in page
    found[0]["machine"]["commit"] = "another"
    page = report.write(found, tmp_path / "two").read_text("utf-8")
    assert page.count("cores of") == 2


def test_what_is_missed_comes_first_and_leads_to_its_section(tmp_path: Path) -> None:
    values = {"met": 1.0, "missed": 9.0}
    found = lines("idle", *(median_of(name, "ms", [value], target=Target(5)) for name, value in values.items()))
    page = report.write(found, tmp_path).read_text("utf-8")
    assert page.index('<a href="#idle">missed</a>') < page.index('<a href="#idle">met</a>') < page.index('id="idle"')


def test_peers_stand_in_a_table_with_what_their_settings_are(tmp_path: Path) -> None:
    def peer(of: str, value: float, unit: str, **details: Any) -> Figure:
        axes = {"peer": "a", "setting": "durable", "of": of}
        settings = {"setting": "synced on <every> write", "versions": "a 1.2"}
        return median_of(f"peers.a.{of}", unit, [value], axes=axes, settings=settings, details=details)

    found = lines("peers", peer("throughput", 1234.0, "jobs/s"), peer("recovery", 15_000.0, "ms", again=False))
    page = report.write(found, tmp_path).read_text("utf-8")
    row = "<td>a</td><td>durable</td><td>1,230</td><td>–</td><td>–</td><td>–</td><td>not within 15 s</td>"
    assert f"{row}<td>a 1.2: synced on &lt;every&gt; write</td>" in page


def test_the_matrix_is_a_table_when_it_was_measured(tmp_path: Path) -> None:
    sizes, durabilities = (100, 4096, 65_536), ("fsync", "os", "memory")
    found = []
    for number, (durability, batch, size) in enumerate(product(durabilities, (1, 16, 256), sizes)):
        axes = {"durability": durability, "workers": 2, "batch": batch, "payload_bytes": size}
        found += lines("throughput", median_of(f"throughput.{number}", "jobs/s", [1000.0 + 10 * number], axes=axes))
    page = report.write(found, tmp_path / "all").read_text("utf-8")
    assert "<th>2 workers, 65,536 B</th>" in page
    assert "<td>memory, batch 256</td><td>1,240</td><td>1,250</td><td>1,260</td>" in page
    page = report.write(found[:5], tmp_path / "few").read_text("utf-8")
    assert "2 workers, 100 B" not in page


def test_samples_are_drawn_in_order_with_the_bounds_of_their_shares() -> None:
    axes = {"killed": "a worker"}
    figures = [
        median_of("m", "ms", [20.0, 30.0, 40.0], target=Target(80), axes={**axes, "share": 50}),
        median_of("p", "ms", [20.0, 30.0, 40.0], target=Target(200), axes={**axes, "share": 99}),
    ]
    svg = plots.draw(Plot("kills", "killed", of_samples=True), lines("recovery", *figures))
    for text in ("% took at most so long", "50 %: bound ≤ 80", "99 %: bound ≤ 200"):
        assert text in svg


def test_numbers_on_the_axes_are_written_out() -> None:
    figures = [median_of(f"{n}", "jobs/s", [10.0**n], axes={"waiting": n}) for n in (3, 6)]
    svg = plots.draw(Plot("logarithmic", "waiting", log_y=True), lines("backlog", *figures))
    assert ">1,000,000<" in svg


def test_a_bound_stands_where_it_holds() -> None:
    def drawn(*targets: Target | None) -> str:
        figures = [
            median_of(f"{n}", "ms", [1.0], target=target, axes={"waiting": 10**n})
            for n, target in enumerate(targets, 3)
        ]
        return plots.draw(Plot("bounds", "waiting", log_x=True), lines("backlog", *figures))

    assert drawn(Target(2), Target(2), Target(2)).count("bound ≤ 2") == 1, "one line for all"
    some = drawn(None, Target(2), Target(3))
    assert some.count("bound ≤ 2") == some.count("bound ≤ 3") == 1
    assert "1,000" in some
    assert "100,000" in some


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
    assert section.plots, "each has a plot"
    assert len({plot.title for plot in section.plots}) == len(section.plots)
    module = __import__(section.measure.__module__, fromlist=["x"])
    assert len(module.__doc__ or "") > 40


def test_peers_are_not_measured_here() -> None:
    with pytest.raises(BenchError, match="make bench-peers"):
        next(PEERS.measure(None, None))
