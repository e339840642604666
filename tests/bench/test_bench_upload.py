"""The upload bench: one small run of it, and what it makes of what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from empd.bench.running import BenchError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import asset_upload  # noqa: E402
from asset_upload import Taken  # noqa: E402

FIGURES = ["bare", "empd", "bare_single", "memory", "empd_to_bare", "empd_to_bare_single", "cpu_to_bare"]


def test_a_run_gives_every_figure_and_stays_within_the_memory(tmp_path: Path) -> None:
    lines_file = tmp_path / "lines.jsonl"
    size = ["--mib", str(asset_upload.MIB_MIN), "--rounds", "1"]
    command = [sys.executable, asset_upload.__file__, *size, "--json", str(lines_file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    lines = {line["name"]: line for line in map(json.loads, lines_file.read_text().splitlines())}
    assert list(lines) == [f"upload.{name}" for name in FIGURES]
    assert all(line["value"] > 0 for line in lines.values())
    assert lines["upload.memory"]["verdict"] == "met"
    assert ended.returncode == (lines["upload.empd_to_bare"]["verdict"] == "missed")
    assert all(f" {name} " in ended.stdout for name in lines)
    assert "round 1 of 1: bare " in ended.stderr


def test_ratios_are_those_of_each_round() -> None:
    runs = [
        {"bare": Taken(10, 1, 50, 9), "empd": Taken(5, 3, 40, 2), "bare_single": Taken(20, 1, 20, 9)},
        {"bare": Taken(10, 1, 50, 9), "empd": Taken(20, 3, 65, 17), "bare_single": Taken(10, 1, 20, 9)},
        {"bare": Taken(10, 1, 50, 9), "empd": Taken(12.5, 3, 30, 7), "bare_single": Taken(10, 1, 20, 9)},
    ]
    found = {figure.name: figure for figure in asset_upload.figures(100, runs)}
    assert list(found["upload.empd_to_bare"].samples) == [2.0, 0.5, 0.8]
    assert found["upload.empd_to_bare"].as_line("upload", 1)["verdict"] == "missed"
    assert list(found["upload.cpu_to_bare"].samples) == [0.5, 2.0, 1.0]
    assert found["upload.memory"].value == 65, "the most that any of them took"
    assert found["upload.memory"].as_line("upload", 1)["verdict"] == "missed"
    assert found["upload.empd"].value == 8
    assert found["upload.empd"].details["server_cpu_s_per_gib"] == pytest.approx(7 * 10.24)


def test_an_upload_that_does_not_arrive_is_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("""print('{"seconds": 1, "client_cpu_s": 1, "grown_mib": 1}')""")
    (tmp_path / "file").write_bytes(b"content")
    monkeypatch.setattr(asset_upload, "__file__", str(program))
    with pytest.raises(BenchError, match=r"the store has blobs of \[\] bytes, the file has 7"):
        asset_upload.one("empd", tmp_path / "file")


def test_a_disk_without_room_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asset_upload.shutil, "disk_usage", lambda _: SimpleNamespace(free=299 << 20))
    with pytest.raises(BenchError, match="299 MiB free; file and store need 300"):
        next(asset_upload.rounds_of(100, 1))
