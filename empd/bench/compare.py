"""Two runs, or two commits, side by side: the ratio of each figure, with an interval that knows the noise."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from empd.bench import machine
from empd.bench.run import Line, Plan
from empd.bench.running import BenchError
from empd.bench.verdict import Ratio, of_lists, of_pairs

PAIRS_MIN = 5
RUN_TIMEOUT_S = 3600.0
OF_A_RUN = ("load_before", "empd", "commit")
"""What may differ between two files that are compared."""

HARNESS = ("empd/bench",)
"""What is taken from here for both commits, so that the same program measures them."""


class Comparison(NamedTuple):
    """One figure of A and B. `verdict` is of B: `better`, `worse`, `same`, `not shown`."""

    name: str
    unit: str
    before: float
    after: float
    ratio: Ratio
    verdict: str


def read(path: Path) -> dict[str, Line]:
    """The figures of a file of JSON lines, by name; of several with one name the last. Raises BenchError when it is
    none."""
    found: dict[str, Line] = {}
    try:
        for text in path.read_bytes().splitlines():
            line = msgspec.json.decode(text, type=dict)
            found[line["name"]] = line
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise BenchError(f"{path} is not a file of `empd bench --json`: {error}") from None
    return found


def files(before: Mapping[str, Line], after: Mapping[str, Line]) -> list[Comparison]:
    """Every figure that both have, by their runs. Those with a sample at or below zero (slopes) have no ratio, and of
    those that are a percentile of all samples these do not say how sure it is. Raises BenchError where nothing is
    left."""
    found = []
    for name, line in before.items():
        if name in after and is_typical(line) and min(*line["samples"], *after[name]["samples"], 1) > 0:
            ratio = of_lists(line["samples"], after[name]["samples"])
            verdict = ratio.verdict(line["more_is_better"])
            found.append(Comparison(name, line["unit"], line["value"], after[name]["value"], ratio, verdict))
    if not found:
        raise BenchError("the two have no figures in common that can be compared")
    return found


def is_typical(line: Line) -> bool:
    """The value is what the samples are about."""
    return line.get("statistic", "median") in ("median", "mean")


def differences(before: Mapping[str, Line], after: Mapping[str, Line]) -> list[str]:
    """How the machines and sizes of two files differ, in words: what a ratio may come from beside the program."""
    first, second = (next(iter(lines.values()))["machine"] for lines in (before, after))
    names = [name for name in first if name not in OF_A_RUN and first[name] != second.get(name)]
    return [f"{name}: A {first[name]}, B {second.get(name)}" for name in names]


def pairs(runs: list[tuple[dict[str, Line], dict[str, Line]]]) -> list[Comparison]:
    """The same of pairs of runs: each pair's values make one ratio. Raises BenchError without any pair."""
    if not runs:
        raise BenchError("no pairs of runs to compare")
    found = []
    for name, line in runs[0][0].items():
        values = [(a[name]["value"], b[name]["value"]) for a, b in runs if name in a and name in b]
        if len(values) == len(runs) and min(min(pair) for pair in values) > 0:
            ratio = of_pairs(values)
            before, after = (median(side) for side in zip(*values, strict=True))
            verdict = ratio.verdict(line["more_is_better"])
            found.append(Comparison(name, line["unit"], before, after, ratio, verdict))
    return found


def commits(
    revisions: tuple[str, str], plan: Plan, count: int, begins: Callable[[int, str], None]
) -> list[tuple[dict[str, Line], dict[str, Line]]]:
    """Measures both commits by turns, `count` pairs whose order alternates, each commit in a worktree of its own that
    is removed afterwards. `begins(pair, revision)` tells of each run. Raises BenchError."""
    if count < PAIRS_MIN:
        raise BenchError(f"{count} pairs say nothing; take at least {PAIRS_MIN}, and 6 for an interval of 95 %")
    found = []
    with _worktree(revisions[0]) as first, _worktree(revisions[1]) as second:
        trees = ((first, revisions[0]), (second, revisions[1]))
        for index in range(count):
            measured: dict[int, dict[str, Line]] = {}
            for which in (0, 1) if index % 2 == 0 else (1, 0):
                tree, revision = trees[which]
                begins(index + 1, revision)
                measured[which] = measure(tree, plan)
            found.append((measured[0], measured[1]))
    return found


def measure(tree: Path, plan: Plan) -> dict[str, Line]:
    """Runs the plan with the package of a source tree; the figures by name. Raises BenchError when it fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "empd.bench.run", msgspec.json.encode(plan).decode()],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if ended.returncode:
        reason = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BenchError(f"this bench does not run with the package of that commit: {reason}")
    lines = [msgspec.json.decode(text, type=dict) for text in ended.stdout.splitlines()]
    return {line["name"]: line for line in lines if line["scenario"] != "floors"}


@contextlib.contextmanager
def _worktree(revision: str) -> Iterator[Path]:
    """The revision, checked out beside, with this harness in it."""
    with tempfile.TemporaryDirectory(prefix="empd-bench-") as directory:
        tree = Path(directory) / "tree"
        _git("worktree", "add", "--detach", str(tree), f"{revision}^{{commit}}")
        try:
            for part in HARNESS:
                _copy(machine.ROOT / part, tree / part)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _copy(source: Path, target: Path) -> None:
    """Replaces the target's Python files by the source's."""
    for old in target.rglob("*.py"):
        old.unlink()
    for file in source.rglob("*.py"):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())


def _git(*arguments: str) -> None:
    ended = subprocess.run(["git", "-C", str(machine.ROOT), *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchError(f"git {arguments[0]} {arguments[1]}: {ended.stderr.strip() or 'failed'}")
