"""Files and commits against each other. The commits are of a repository of the test's own, with a bench that lies."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from empd.bench import compare, machine
from empd.bench.run import Plan
from empd.bench.running import BenchError

FAKE = """
import json, pathlib, sys
plan = json.loads(sys.argv[1])
speed = float((pathlib.Path(__file__).parents[1] / "speed").read_text())
for name in plan["scenarios"]:
    line = {{"scenario": name, "name": f"{{name}}.x", "value": speed, "unit": "jobs/s", "more_is_better": True}}
    print(json.dumps(line))
{more}
"""


def line(name: str, *samples: float, unit: str = "ms") -> dict[str, Any]:
    value = sorted(samples)[len(samples) // 2]
    return {"name": name, "value": value, "unit": unit, "samples": list(samples), "more_is_better": unit == "jobs/s"}


def test_figures_that_both_have_are_compared() -> None:
    before = {"a": line("a", 10, 11, 12, 13, 14), "gone": line("gone", 1.0), "slope": line("slope", -1.0)}
    after = {"a": line("a", 20, 21, 22, 23, 24), "new": line("new", 1.0), "slope": line("slope", 2.0)}
    [found] = compare.files(before, after)
    assert (found.name, found.before, found.after, found.verdict) == ("a", 12, 22, "worse")
    assert 1.5 < found.ratio.low <= found.ratio.value <= found.ratio.high < 2.4


def test_samples_that_are_not_about_the_value_give_no_interval() -> None:
    """Of a p99 of all samples these would compare the medians."""
    before = {"a": line("a", 1, 2), "p": line("p", 1, 2) | {"statistic": "p99"}}
    assert [one.name for one in compare.files(before, before)] == ["a"]
    with pytest.raises(BenchError, match="no figures in common"):
        compare.files({"p": before["p"]}, before)


def test_pairs_make_one_ratio_each() -> None:
    runs = [({"a": line("a", 100.0 + n)}, {"a": line("a", 50.0 + n)}) for n in range(6)]
    [found] = compare.pairs(runs)
    assert found.verdict == "better"
    assert found.ratio.low == pytest.approx(50 / 100)
    with pytest.raises(BenchError, match="no pairs"):
        compare.pairs([])


def test_a_file_is_read_back_the_last_line_of_a_name_counts(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text("".join(json.dumps(line("a", value)) + "\n" for value in (1.0, 2.0)))
    assert compare.read(file)["a"]["value"] == 2.0
    file.write_text("no json")
    with pytest.raises(BenchError, match=r"run\.jsonl is not a file"):
        compare.read(file)
    with pytest.raises(BenchError, match="No such file"):
        compare.read(tmp_path / "none")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits (tags `slow` and `fast`) of a package whose bench says the speed that is written beside it."""
    root = tmp_path / "repository"
    (root / "empd" / "bench").mkdir(parents=True)
    (root / "empd" / "__init__.py").write_text("")
    (root / "empd" / "bench" / "__init__.py").write_text("")
    git(root, "init", "-q")
    for name, speed in (("slow", 100), ("fast", 200)):
        (root / "empd" / "speed").write_text(str(speed))
        (root / "empd" / "bench" / "run.py").write_text("raise SystemExit('the harness of the commit is not used')")
        git(root, "add", "-A")
        git(root, "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-q", "--allow-empty", "-m", name)
        git(root, "tag", name)
    (root / "empd" / "bench" / "run.py").write_text(FAKE.format(more=""))
    monkeypatch.setattr(machine, "ROOT", root)
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def test_commits_are_measured_by_turns_by_this_harness(repository: Path) -> None:
    begun: list[tuple[int, str]] = []
    plan = Plan(scenarios=("cost",))
    runs = compare.commits(("slow", "fast"), plan, 5, lambda number, name: begun.append((number, name)))
    assert [name for _, name in begun[:4]] == ["slow", "fast", "fast", "slow"], "the order alternates"
    assert len(runs) == 5
    [found] = compare.pairs(runs)
    assert (found.before, found.after, found.ratio.value) == (100, 200, 2)
    assert git(repository, "worktree", "list").count("\n") == 1, "the worktrees are gone"


def test_what_goes_wrong_is_told_and_cleaned_up(repository: Path) -> None:
    (repository / "empd" / "bench" / "run.py").write_text(FAKE.format(more="raise SystemExit('it broke')"))
    with pytest.raises(BenchError, match="it broke"):
        compare.commits(("slow", "fast"), Plan(), 5, lambda *_: None)
    assert git(repository, "worktree", "list").count("\n") == 1
    with pytest.raises(BenchError, match="nonsense"):
        compare.commits(("slow", "nonsense"), Plan(), 5, lambda *_: None)
    with pytest.raises(BenchError, match="at least 5"):
        compare.commits(("slow", "fast"), Plan(), 4, lambda *_: None)
