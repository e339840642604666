"""`python -m empd.bench` as it is called."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from empd.bench import command, processes, scenarios
from empd.bench.daemon import wait_until
from empd.bench.figures import Figure, Scenario, Target, median_of

README = (Path(__file__).parents[2] / "bench" / "README.md").read_text("utf-8")
FULL, QUICK = object(), object()


def planted(size: object, place: str) -> Iterator[Figure]:
    """A scenario that is fast, and misses its target in the full size."""
    yield median_of("planted", "ms", [1.0 if size is QUICK else 9.0], target=Target(5), settings={"place": place})


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(command, "FLOOR_ROUNDS", 3)
    monkeypatch.setattr(command, "FLOOR_ROUNDS_QUICK", 3)
    monkeypatch.setitem(scenarios.SCENARIOS, "idle", Scenario("idle", "planted", planted, FULL, QUICK))
    return CliRunner()


def lines(text: str) -> dict[str, dict[str, object]]:
    return {line["name"]: line for line in map(json.loads, text.splitlines())}


def test_floors_come_first_and_every_line_says_where(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(command.bench, ["idle", "--place", str(tmp_path)], standalone_mode=False)
    assert result.exception is None
    found = lines(result.stdout)
    assert list(found) == ["floor.zmq_echo", "floor.sqlite_commit", "planted"]
    assert all(line["machine"] == found["planted"]["machine"] for line in found.values())
    assert found["planted"]["met"] is False
    assert found["planted"]["settings"] == {"place": str(tmp_path)}
    assert "planted" in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is left where state lay"


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--strict"], 1), (["--strict", "--quick"], 0)])
def test_a_missed_target_fails_only_when_asked(runner: CliRunner, flags: list[str], code: int) -> None:
    result = runner.invoke(command.bench, ["idle", *flags], standalone_mode=False)
    assert result.exception is None
    assert result.return_value == code


def test_the_module_lists_its_scenarios() -> None:
    ended = subprocess.run([sys.executable, "-m", "empd.bench", "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in ended.stdout.splitlines()] == list(scenarios.SCENARIOS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_bench_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "empd.bench", "idle", "--place", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    bench = psutil.Process(process.pid)
    try:
        wait_until(lambda: process.poll() is not None or len(bench.children(recursive=True)) >= 6, "its daemon")
        assert process.poll() is None, process.communicate()[1].decode()
        family = bench.children(recursive=True)
        [supervisor] = bench.children()
        arguments = supervisor.cmdline()
        runtime_dir = Path(arguments[arguments.index("--runtime-dir") + 1]).parent
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    wait_until(lambda: not any(processes.exists(child.pid) for child in family), "all of them to end", 10)
    assert b"Traceback" not in said
    if number is signal.SIGKILL:
        shutil.rmtree(runtime_dir)
    else:
        assert process.returncode == 130
        assert not runtime_dir.exists()
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_there_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "empd.bench", "--place", "/no/such/place"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "/no/such/place" in ended.stderr


def test_an_unknown_scenario_is_one_line_and_no_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "empd.bench", "nonsense"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr
    assert "throughput" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_page_tells_of_every_scenario() -> None:
    for name in scenarios.SCENARIOS:
        assert f"`{name}`" in README
