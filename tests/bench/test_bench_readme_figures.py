"""The pages' tables come from a run's lines, and say what is missed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from empd.bench import machine, tables

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("readme_figures", ROOT / "bench" / "readme_figures.py")
assert _spec is not None
assert _spec.loader is not None
readme_figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_figures)


def line(name: str, value: float, unit: str = "ratio", verdict: str | None = "met", **more: Any) -> dict[str, Any]:
    has_bound = verdict is not None
    said = {
        "name": name,
        "value": value,
        "unit": unit,
        "verdict": verdict,
        "bound": "≤ 1" if has_bound else None,
        "target": 1 if has_bound else None,
        "details": {},
        "axes": {},
    }
    return {**said, "machine": {"cores": 2}, **more}


def all_lines() -> list[dict[str, Any]]:
    return [line(name, 1.234) for row in readme_figures.FIGURES for name in row.names]


def costs() -> list[dict[str, Any]]:
    units = {"written": "bytes"}
    return [
        line(f"cost.{mode}.{column}", 2000.0 if column in units else 12.345, units.get(column, "µs"), None)
        for mode in tables.COST_MODES
        for column in tables.COST_COLUMNS
    ]


def test_a_value_has_three_digits_and_its_unit() -> None:
    assert tables.value(line("a", 128_091.0, "jobs/s")) == "128,000"
    assert tables.value(line("a", 1.0349)) == "1.03 ×"
    assert tables.value(line("a", 296.4, "bytes")) == "296 B"
    assert tables.value(line("a", 1734.0, "ms")) == "1.73 s"
    assert tables.value(line("a", 24.0, "ms", None)) == "24 ms"


def test_a_bound_has_the_unit_of_its_value() -> None:
    assert tables.bound(line("a", 1, "ms", bound="≤ 10,000", target=10_000.0)) == "≤ 10 s"
    assert tables.bound(line("a", 1, "ms", bound="≤ 80", target=80.0)) == "≤ 80 ms"
    assert tables.bound(line("a", 1, "jobs/s", bound="≥ 35,000", target=35_000)) == "≥ 35,000"
    assert tables.bound(line("a", 1, bound=None, target=None)) == "–"


@pytest.mark.parametrize("verdict", ["missed", "machine too small"])
def test_what_is_missed_says_so_on_whatever_machine(verdict: str) -> None:
    assert tables.value(line("a", 22.0, "ms", verdict)) == "22 ms ✗"


def test_a_job_that_never_started_again_has_no_time() -> None:
    never = line("a", 40_000.0, "ms", None, details={"again": False})
    assert tables.value(never) == "not within 40 s"


def test_the_table_names_the_cores_and_every_bound() -> None:
    head, _, *body = readme_figures.markdown(readme_figures.figures_table(all_lines()))
    assert "2 cores" in head
    assert len(body) == len(readme_figures.FIGURES)
    assert body[0].endswith("| 1.23 ×; 1.23 × | ≤ 1; ≤ 1 |")


def test_a_row_says_its_unit_and_that_nothing_is_asked_once() -> None:
    lines = [line("a", 1.0, "µs", None), line("b", 2.0, "µs", None)]
    assert (readme_figures.measured(lines), readme_figures.targets(lines)) == ("1; 2", "–")
    assert readme_figures.targets([lines[0], line("c", 1.0)]) == "–; ≤ 1"


def test_the_costs_end_with_the_walls_that_follow() -> None:
    head, _, *body = readme_figures.markdown(tables.costs(costs()))
    assert head.startswith("| CPU of one job, µs | client | broker | (of it the journal) | worker |")
    assert len(body) == 4
    assert body[0] == "| in batches of 256 | 12 | 12 | 12 | 12 | 12 | 12 | 2 KB |"
    assert body[3].endswith("2 cores | 81,000 | 81,000 | – | 160,000 | 81,000 | 160,000 | – |")
    with pytest.raises(KeyError, match=r"cost\.alone\.journal"):
        tables.costs([one for one in costs() if one["name"] != "cost.alone.journal"])


def test_the_table_is_not_too_wide_for_the_page_at_its_worst() -> None:
    """Every figure missed, and as wide as it gets: a README with a longer line fails its test."""
    widest = {
        "throughput": (123_456.0, "jobs/s", "≥ 120,000"),
        "idle": (0.123, "% of a core", "≤ 0.5"),
        "memory": (1234.0, "bytes", "≤ 500"),
        "recovery.worker": (98.7, "ms", "≤ 80"),
        "recovery.broker.100000": (1340.0, "ms", "≤ 1,000"),
        "recovery.broker.1000000": (12_340.0, "ms", "≤ 10,000"),
        "recovery.box": (1340.0, "ms", None),
        "memory.worker": (31.1, "MiB", "≤ 30"),
        "load": (98.7, "ms", "≤ 5"),
        "status": (98.7, "ms", "≤ 25"),
        "startup": (998.0, "ms", "≤ 500"),
        "cost": (12.34, "µs", None),
    }
    lines = []
    for name in (name for row in readme_figures.FIGURES for name in row.names):
        number, unit, bound = widest.get(name) or widest.get(name.partition(".")[0], (0.123, "ratio", "≥ 0.85"))
        target = bound and float(bound[2:].replace(",", ""))
        lines.append(line(name, number, unit, "missed" if bound else None, bound=bound, target=target))
    table = readme_figures.markdown(readme_figures.figures_table(lines))
    assert max(map(len, table)) <= 130


def test_half_a_run_writes_no_table() -> None:
    lines = [one for one in all_lines() if one["name"] != "startup.ready"]
    with pytest.raises(KeyError, match=r"startup\.ready"):
        readme_figures.figures_table(lines)


def test_peers_stand_with_each_setting() -> None:
    axes = {"peer": "Planted", "setting": "fast"}
    lines = [
        line("p", 1000.0, "jobs/s", None, axes={**axes, "of": "throughput"}),
        line("q", 5.0, "ms", None, axes={**axes, "of": "recovery"}),
        line("r", 10.0, "jobs/s", None, axes={**axes, "setting": "durable", "of": "throughput"}),
    ]
    assert readme_figures.markdown(readme_figures.peers_table(lines))[2:] == [
        "| Planted | fast | 1,000 | – | – | – | 5 ms |",
        "| Planted | durable | 10 | – | – | – | – |",
    ]


def test_a_page_is_filled_between_its_marks_only() -> None:
    page = "a\n<!-- x: begin -->\nas it was\n<!-- x: end -->\nb\n"
    assert readme_figures.fill(page, "x", ["new"]) == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="no place for y"):
        readme_figures.fill(page, "y", [])


def test_the_pages_have_their_marks_and_the_figures_their_names(tmp_path: Path) -> None:
    for place in readme_figures.PLACES:
        readme_figures.fill((ROOT / place.page).read_text("utf-8"), place.mark, [])
        assert set(place.plots) <= set(readme_figures.PLOTS)
    explained = (ROOT / "bench" / "README.md").read_text("utf-8")
    for row in readme_figures.FIGURES:
        for name in row.names:
            first = name.partition(".")[0]
            assert f"`{first}." in explained, name


def test_what_is_missing_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench" / "figures").mkdir(parents=True)
    for place in readme_figures.PLACES:
        with (tmp_path / place.page).open("a") as page:
            page.write(f"<!-- {place.mark}: begin -->\nas it was\n<!-- {place.mark}: end -->\n")
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b"")
    monkeypatch.setattr(readme_figures, "ROOT", tmp_path)
    assert readme_figures.main([str(lines)]) == 1
    assert "as it was" in (tmp_path / "README.md").read_text()
    said = capsys.readouterr().err
    assert "no figure 'throughput.fsync.batch256'" in said
    assert "no figure 'peers'" in said
    assert "no figure 'cost.batch256.client'" in said
    assert "no plot peers.throughput-jobs-s.svg" in said


def measured_lines() -> list[dict[str, Any]]:
    """What the tables and plots need, with all that a report does."""
    where = {**machine.describe("/tmp"), "quick": True, "endpoint": ""}
    peers = [
        line(f"{of}{peer}", 5.0, "ms", None, scenario="peers", axes={"peer": peer, "setting": "fast", "of": of})
        for of in ("throughput", "recovery")
        for peer in ("a", "b")
    ]
    curve = {"durability": "fsync", "workers": 2, "payload_bytes": 100}
    found = peers + [one | {"scenario": "cost"} for one in costs()]
    for one in found[len(peers) :]:
        _, mode, process = one["name"].split(".")
        one["axes"] = {"mode": mode, "process": process, "of": "cpu" if one["unit"] == "µs" else "written"}
    for one in all_lines():
        if one["name"] not in {other["name"] for other in found}:
            batch = one["name"].rpartition("batch")[2] if one["name"].startswith("throughput") else ""
            axes = {**curve, "batch": int(batch)} if batch else {}
            found.append(one | {"scenario": one["name"].partition(".")[0], "axes": axes})
    more = {
        "machine": where,
        "min": 1,
        "max": 9,
        "median": 5,
        "samples": [1, 5, 9],
        "runs": 3,
        "settings": {"setting": "as it comes"},
    }
    return [{**one, **more} for one in found]


def test_pages_get_their_tables_and_their_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench" / "figures").mkdir(parents=True)
    for place in readme_figures.PLACES:
        with (tmp_path / place.page).open("a") as page:
            page.write(f"<!-- {place.mark}: begin -->\nas it was\n<!-- {place.mark}: end -->\n")
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in measured_lines()))
    monkeypatch.setattr(readme_figures, "ROOT", tmp_path)
    assert readme_figures.main([str(lines)]) == 0
    drawn = {path.stem for path in (tmp_path / "bench" / "figures").glob("*.svg")}
    assert drawn == set(readme_figures.PLOTS), "they have the names that the report gives them"
    for place in readme_figures.PLACES:
        page = tmp_path / place.page
        assert "as it was" not in page.read_text()
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert links
        assert all((page.parent / link).exists() for link in links)
    assert max(map(len, (tmp_path / "README.md").read_text().splitlines())) <= 130
    svg = (tmp_path / "bench" / "figures" / "cost.svg").read_text()
    assert svg.startswith('<svg style="background: white"'), "readable on a dark page"


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_figures.main([str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl: not there; `make bench bench-peers` writes them" in capsys.readouterr().err


def test_a_plot_that_is_not_there_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_figures, "ROOT", tmp_path)
    assert readme_figures.images(readme_figures.PLACES[0]) == []
