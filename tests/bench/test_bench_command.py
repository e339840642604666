"""`empd bench` as it is called."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from empd.bench import processes, scenarios
from empd.bench import run as running
from empd.bench.daemon import Daemon, Where, noop_mapping
from empd.bench.figures import Figure, Scenario, Target, median_of
from empd.bench.run import Plan, check
from empd.bench.running import BenchError, wait_until
from empd.cli import bench as command
from empd.cli.codes import ExitCode
from empd.errors import EmpdError

README = (Path(__file__).parents[2] / "bench" / "README.md").read_text("utf-8")
EMPD = [sys.executable, "-m", "empd", "bench"]
FULL, QUICK = scenarios.SCENARIOS["idle"].full, scenarios.SCENARIOS["idle"].quick


def planted(size: object, where: Where) -> Iterator[Figure]:
    """A scenario that is fast, and misses its bound in the full size."""
    endpoint = where.running.endpoint if where.running else ""
    settings = {"place": where.place, "endpoint": endpoint, "parts": size.parts}  # type: ignore[attr-defined]
    yield median_of("planted", "ms", [1.0 if size == QUICK else 9.0], target=Target(5), settings=settings)


def floor(_: object, where: Where) -> Iterator[Figure]:
    yield median_of("floor", "µs", [1.0])


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setitem(scenarios.SCENARIOS, "floors", Scenario("floors", "planted", floor, FULL, QUICK))
    monkeypatch.setitem(scenarios.SCENARIOS, "idle", Scenario("idle", "planted", planted, FULL, QUICK))
    monkeypatch.setitem(
        scenarios.SCENARIOS, "latency", Scenario("latency", "planted", planted, FULL, QUICK, on_running=True)
    )
    return CliRunner()


def called(runner: CliRunner, *arguments: str, code: int = ExitCode.OK) -> Result:
    result = runner.invoke(command.bench, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    assert result.return_value == code, result.output
    return result


def lines(path: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_floors_come_first_and_every_line_says_where(runner: CliRunner, tmp_path: Path) -> None:
    file, place = tmp_path / "run.jsonl", tmp_path / "state"
    place.mkdir()
    result = called(runner, "-s", "idle", "--place", str(place), "--json", str(file))
    found = lines(file)
    assert list(found) == ["floor", "planted"]
    assert all(line["machine"] == found["planted"]["machine"] for line in found.values())
    assert (found["planted"]["verdict"], found["planted"]["scenario"]) == ("missed", "idle")
    assert found["planted"]["settings"]["place"] == str(place)
    assert "planted" in result.stdout
    assert "≤ 5" in result.stdout
    assert list(place.iterdir()) == [], "nothing is left where state lay"


def test_lines_on_standard_output_have_it_alone(runner: CliRunner) -> None:
    result = called(runner, "-s", "idle", "--quick", "--json", "-")
    assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["floor", "planted"]
    assert "planted" in result.stderr


@pytest.mark.parametrize(
    ("flags", "code"),
    [([], ExitCode.OK), (["--strict"], ExitCode.FAILED), (["--strict", "--quick"], ExitCode.OK)],
)
def test_a_missed_bound_fails_only_when_asked(runner: CliRunner, flags: list[str], code: int) -> None:
    called(runner, "-s", "idle", *flags, code=code)


def test_a_running_daemon_is_measured_by_what_can_be_measured_there(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.jsonl"
    monkeypatch.setattr(running, "check", lambda plan: None)
    called(runner, "-s", "latency", "--endpoint", "ipc:///somewhere/empd.sock", "--json", str(file))
    assert lines(file)["planted"]["settings"]["endpoint"] == "ipc:///somewhere/empd.sock"
    result = runner.invoke(command.bench, ["-s", "idle", "--endpoint", "ipc:///somewhere/empd.sock"])
    assert "leave out --endpoint" in str(result.exception)
    result = runner.invoke(command.bench, ["--endpoint", "tcp://elsewhere:1"])
    assert "not a local endpoint" in result.stderr


def test_what_cannot_be_reported_is_said_before_anything_is_measured(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = runner.invoke(command.bench, ["-s", "idle", "--report", str(tmp_path / "file" / "page")])
    assert "no report can be written" in str(result.exception)
    assert "planted" not in result.output


def test_what_was_measured_before_one_failed_is_shown_and_reported(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object, where: Where) -> Iterator[Figure]:
        yield median_of("half", "ms", [1.0])
        raise BenchError("the other half is not there")

    monkeypatch.setitem(scenarios.SCENARIOS, "startup", Scenario("startup", "planted", fails, FULL, QUICK))
    page = tmp_path / "page"
    result = runner.invoke(command.bench, ["-s", "idle", "-s", "startup", "--report", str(page)])
    assert "the other half is not there" in str(result.exception)
    for text in ("planted", "half"):
        assert text in result.stdout
        assert text in (page / "index.html").read_text()


def test_a_daemon_is_asked_for_its_service_first(tmp_path: Path) -> None:
    with Daemon(noop_mapping(1), str(tmp_path)) as daemon:
        with pytest.raises(BenchError, match="no service 'other' there; --service takes one of noop"):
            check(Plan(endpoint=daemon.endpoint, service="other"))
        check(Plan(endpoint=daemon.endpoint, service="noop"))
    with pytest.raises(EmpdError, match="no empd answers"):
        check(Plan(endpoint=f"ipc://{tmp_path}/none.sock"))


def test_a_daemon_as_shipped_has_the_service() -> None:
    file = json.loads((Path(__file__).parents[2] / "etc" / "service-mapping.json").read_text())
    service = file["services"][Plan().service]
    assert (service["connector"], service["api_config"]["duration_s"]) == ("SimulationConnector", 0)


def test_a_missing_package_is_missed_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    check(Plan(scenarios=("idle",)))
    with pytest.raises(BenchError, match="hdrhistogram"):
        check(Plan(scenarios=("idle", "load")))


def test_files_with_nothing_in_common_are_not_compared(runner: CliRunner, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    called(runner, "-s", "idle", "--json", files[0])
    Path(files[1]).write_text("")
    result = runner.invoke(command.bench, ["compare", *files])
    assert "no figures in common" in str(result.exception)
    result = runner.invoke(command.bench, ["report", files[1], "--into", str(tmp_path / "page")])
    assert "no figures to report" in str(result.exception)


def test_two_files_are_compared(runner: CliRunner, tmp_path: Path) -> None:
    full, quick = str(tmp_path / "full.jsonl"), str(tmp_path / "quick.jsonl")
    called(runner, "-s", "idle", "--json", full)
    called(runner, "-s", "idle", "--quick", "--json", quick)
    result = called(runner, "compare", full, quick, "--json")
    found = {one["name"]: one for one in json.loads(result.stdout)}
    assert found["planted"]["ratio"]["value"] == pytest.approx(1 / 9)
    assert found["planted"]["verdict"] == "not shown", "one run each shows nothing"
    shown = called(runner, "compare", full, quick, "-s", "idle").stdout
    assert "planted" in shown
    assert "floor" not in shown
    assert f"A: {full}, B: {quick}" in shown
    assert "quick: A False, B True" in shown, "how the runs differ is told"
    assert "load_before" not in shown


def test_a_page_is_made_of_files(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    called(runner, "-s", "idle", "--json", str(file))
    called(runner, "report", str(file), "--into", str(tmp_path / "page"), code=None)  # type: ignore[arg-type]
    assert "planted" in (tmp_path / "page" / "index.html").read_text()


def test_it_lists_its_scenarios() -> None:
    ended = subprocess.run([*EMPD, "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in ended.stdout.splitlines()] == list(scenarios.SCENARIOS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_bench_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*EMPD, "-s", "idle", "--runs", "1", "--place", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    bench = psutil.Process(process.pid)

    def daemon() -> list[psutil.Process]:
        try:
            found = [child for child in bench.children() if "--runtime-dir" in child.cmdline()]
            return found if found and len(found[0].children(recursive=True)) >= 5 else []
        except psutil.Error:
            return []  # one of the floors' processes ended in this moment

    try:
        wait_until(lambda: process.poll() is not None or daemon(), "its daemon")
        assert process.poll() is None, process.communicate()[1].decode()
        [supervisor] = daemon()
        family = bench.children(recursive=True)
        arguments = supervisor.cmdline()
        runtime_dir = Path(arguments[arguments.index("--runtime-dir") + 1]).parent
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    wait_until(lambda: not any(processes.exists(child.pid) for child in family), "all of them to end", 30)
    assert b"Traceback" not in said
    if number is signal.SIGKILL:
        shutil.rmtree(runtime_dir)
    else:
        assert process.returncode == ExitCode.INTERRUPTED
        assert not runtime_dir.exists()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--place", "/no/such/place"], "/no/such/place"), (["-s", "nonsense"], "throughput")]
)
def test_a_wrong_call_is_one_line_and_no_traceback(arguments: list[str], named: str) -> None:
    ended = subprocess.run([*EMPD, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.USAGE
    assert named in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_page_tells_of_every_scenario() -> None:
    for name in scenarios.SCENARIOS:
        assert f"`{name}`" in README


def test_heavy_modules_wait_until_they_are_needed() -> None:
    code = (
        "import sys, empd.cli.bench; print([name for name in ('matplotlib', 'hdrh', 'numpy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
