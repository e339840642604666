"""The pages' tables come from a run's lines, and say what is missed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("readme_figures", ROOT / "bench" / "readme_figures.py")
assert _spec is not None
assert _spec.loader is not None
readme_figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_figures)


def line(name: str, value: float, unit: str = "ratio", verdict: str | None = "met", **more: Any) -> dict[str, Any]:
    said = {
        "name": name,
        "value": value,
        "unit": unit,
        "verdict": verdict,
        "bound": "≤ 1",
        "target": 1,
        "details": {},
        "axes": {},
    }
    return {**said, "machine": {"cores": 2}, **more}


def all_lines() -> dict[str, dict[str, Any]]:
    return {name: line(name, 1.234) for row in readme_figures.FIGURES for name in row.names}


def test_a_value_has_three_digits_and_its_unit() -> None:
    assert readme_figures.value(line("a", 128_091.0, "jobs/s")) == "128,000"
    assert readme_figures.value(line("a", 1.0349)) == "1.03 ×"
    assert readme_figures.value(line("a", 296.4, "bytes")) == "296 B"
    assert readme_figures.value(line("a", 1734.0, "ms")) == "1.73 s"
    assert readme_figures.value(line("a", 24.0, "ms", None)) == "24 ms"


def test_a_bound_has_the_unit_of_its_value() -> None:
    assert readme_figures.bound(line("a", 1, "ms", bound="≤ 10,000", target=10_000.0)) == "≤ 10 s"
    assert readme_figures.bound(line("a", 1, "ms", bound="≤ 80", target=80.0)) == "≤ 80 ms"
    assert readme_figures.bound(line("a", 1, "jobs/s", bound="≥ 35,000", target=35_000)) == "≥ 35,000"
    assert readme_figures.bound(line("a", 1, bound=None, target=None)) == "–"


@pytest.mark.parametrize("verdict", ["missed", "machine too small"])
def test_what_is_missed_says_so_on_whatever_machine(verdict: str) -> None:
    assert readme_figures.value(line("a", 22.0, "ms", verdict)) == "22 ms (missed)"


def test_a_job_that_never_started_again_has_no_time() -> None:
    never = line("a", 40_000.0, "ms", None, details={"again": False})
    assert readme_figures.value(never) == "not within 40 s"


def test_the_table_names_the_cores_and_every_bound() -> None:
    head, _, *body = readme_figures.figures_table(all_lines())
    assert "2 cores" in head
    assert len(body) == len(readme_figures.FIGURES)
    assert body[0].endswith("| 1.23 ×; 1.23 × | ≤ 1; ≤ 1 |")


def test_half_a_run_writes_no_table() -> None:
    lines = all_lines()
    del lines["startup.ready"]
    with pytest.raises(KeyError, match=r"startup\.ready"):
        readme_figures.figures_table(lines)


def test_peers_stand_with_each_setting() -> None:
    axes = {"peer": "Planted", "setting": "fast"}
    lines = [
        line("p", 1000.0, "jobs/s", None, axes={**axes, "of": "throughput"}),
        line("q", 5.0, "ms", None, axes={**axes, "of": "recovery"}),
        line("r", 10.0, "jobs/s", None, axes={**axes, "setting": "durable", "of": "throughput"}),
    ]
    assert readme_figures.peers_table(lines)[2:] == [
        "| Planted | fast | 1,000 | – | – | – | 5 ms |",
        "| Planted | durable | 10 | – | – | – | – |",
    ]


def test_a_page_is_filled_between_its_marks_only() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert readme_figures.fill(page, "x", ["new"]) == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="no place for y"):
        readme_figures.fill(page, "y", [])


def test_the_pages_have_their_marks_and_the_figures_their_names(tmp_path: Path) -> None:
    for page, mark in (("README.md", "figures"), ("bench/README.md", "peers")):
        readme_figures.fill((ROOT / page).read_text("utf-8"), mark, [])
    explained = (ROOT / "bench" / "README.md").read_text("utf-8")
    for row in readme_figures.FIGURES:
        for name in row.names:
            first = name.partition(".")[0]
            assert f"`{first}." in explained, name


def test_what_is_missing_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench" / "figures").mkdir(parents=True)
    for page, mark in (("README.md", "figures"), ("bench/README.md", "peers")):
        (tmp_path / page).write_text(f"<!-- {mark}: begin -->\nold\n<!-- {mark}: end -->\n")
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b"")
    monkeypatch.setattr(readme_figures, "ROOT", tmp_path)
    assert readme_figures.main([str(lines)]) == 1
    assert "old" in (tmp_path / "README.md").read_text()
    said = capsys.readouterr().err
    assert "no figure 'throughput.fsync.batch256'" in said
    assert "no figure 'peers'" in said
    assert "no plot peers.throughput-jobs-s.svg" in said


def test_plots_have_the_names_that_the_report_gives_them(tmp_path: Path) -> None:
    from empd.bench import machine, report

    where = {**machine.describe("/tmp"), "quick": True, "endpoint": ""}
    lines = [
        line(f"{of}{peer}", 5.0, "ms", None, axes={"peer": peer, "setting": "fast", "of": of})
        | {"scenario": "peers", "machine": where, "min": 1, "max": 9, "median": 5, "samples": [1, 5, 9], "runs": 3}
        | {"settings": {}, "bound": None}
        for of in ("throughput", "recovery")
        for peer in ("a", "b")
    ]
    drawn = report.write(lines, tmp_path).parent
    assert {path.name for path in drawn.glob("*.svg")} == set(readme_figures.PLOTS)
