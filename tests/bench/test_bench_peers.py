"""The peers' frame, and those peers that need nothing but what is here: empd itself and raw ZeroMQ."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from empd.bench import report
from empd.bench.peers import PEERS
from empd.bench.running import BenchError, wait_until

ROOT = Path(__file__).parents[2]
HERE = ROOT / "bench" / "peers"
sys.path.insert(0, str(ROOT / "bench"))

from peers import __main__ as command  # noqa: E402
from peers import measure, table  # noqa: E402
from peers.interface import Peer, end, module  # noqa: E402

TINY = measure.Size(seconds=0.01, jobs_max=600, alone=3, large=1, waiting=2000, runs=2, kills=2)
REAL = ("empd", "zeromq", "zeromq-proxy", "zeromq-loop")


class Planted(Peer):
    """Answers from this process."""

    name = "Planted, here"
    settings = {"fast": "nothing", "durable": "nothing either"}
    large_bytes = 1000
    wrong = False

    def start(self) -> None:
        self.work(sys.executable, "-c", "import time; time.sleep(600)", count=2)

    def put(self, payloads: Sequence[bytes]) -> Any:
        return list(payloads)

    def results(self, handles: Any) -> list[bytes]:
        return [b"wrong", *handles[1:]] if self.wrong else handles


class Forgetful(Planted):
    """Runs a held job in a process of its own, once."""

    def hold(self, payload: bytes) -> None:
        self.work(sys.executable, "-c", f"from peers import job; job.run({payload!r})")


def test_a_peer_gives_its_figures(tmp_path: Path) -> None:
    with Planted("durable", tmp_path) as peer:
        found = {figure.name: figure for figure in measure.measure(peer, TINY)}
        assert list(measure.measure_waiting(peer, TINY)) == [], "without a broker nothing waits anywhere"
    names = ("throughput", "latency", "latency_p99", "payload")
    assert list(found) == [f"peers.planted-here.durable.{name}" for name in names]
    figure = found["peers.planted-here.durable.throughput"]
    assert figure.axes == {"peer": "Planted, here", "setting": "durable", "of": "throughput"}
    assert figure.settings == {"setting": "nothing either"}
    assert {plot.where["of"] for plot in PEERS.plots} <= {*names, "memory", "recovery"}


def test_a_peer_that_gives_back_something_else_is_no_figure(tmp_path: Path) -> None:
    with Planted("fast", tmp_path) as peer, pytest.raises(BenchError, match="did not give back"):
        peer.wrong = True
        next(measure.measure(peer, TINY))


def test_workers_are_ended_when_jobs_are_to_wait_and_all_at_the_end(tmp_path: Path) -> None:
    with Planted("fast", tmp_path) as peer:
        workers = [process.pid for process in peer.workers]
        other = peer.spawn(sys.executable, "-c", "import time; time.sleep(600)")
        assert len(workers) == 2
        peer.park()
        assert not any(map(psutil.pid_exists, workers))
        assert other.poll() is None
    assert other.poll() is not None


def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    peer = Planted("fast", tmp_path)
    process = peer.spawn(sys.executable, "-c", code)
    children = wait_until(lambda: psutil.Process(process.pid).children(), "its child")
    end([process])
    wait_until(lambda: not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE, "its end")


@pytest.mark.parametrize("name", REAL)
def test_real_ones(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = table.PEERS[name]()
    with kind("fast", tmp_path) as peer:
        peer.large_bytes = 200_000  # type: ignore[misc]
        found = list(measure.measure(peer, TINY))
        waiting = list(measure.measure_waiting(peer, TINY))
    recovery = list(measure.measure_recovery(lambda: kind("fast", tmp_path_factory.mktemp("fresh")), TINY))
    assert [figure.axes["of"] for figure in found] == ["throughput", "latency", "latency_p99", "payload"]
    assert all(figure.value > 0 for figure in found)
    assert [figure.axes["of"] for figure in waiting] == (["memory"] if name == "empd" else [])
    assert [figure.details["again"] for figure in recovery] == ([True] if name == "empd" else [])


def test_a_job_that_does_not_start_again_has_the_limit_as_its_figure(tmp_path: Path) -> None:
    size = msgspec.structs.replace(TINY, kills=3, again_limit_s=0.2)
    [figure] = measure.measure_recovery(lambda: Forgetful("fast", tmp_path), size)
    assert (figure.value, figure.details["again"], len(figure.samples)) == (200, False, 1)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package `peers` whose measure prints, fails or takes too long, by the peer's name."""
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "__init__.py").write_text("")
    (tmp_path / "peers" / "measure.py").write_text(
        "import sys, time\nname, setting = sys.argv[1:3]\n"
        'print(\'{"name": "%s.%s"}\' % (name, setting), flush=True)\n'
        "if name == 'broken': raise RuntimeError('it broke')\n"
        "if name == 'slow': time.sleep(600)\n"
    )
    monkeypatch.setattr(command, "__file__", str(tmp_path / "peers" / "__main__.py"))
    return tmp_path


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("name", "problem"), [("well", ""), ("broken", "RuntimeError: it broke"), ("slow", "it took too long")]
)
def test_each_runs_in_a_process_of_its_own_bounded_in_time(
    name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "slow":
        monkeypatch.setattr(command, "QUICK_LIMIT_S", 2.0)
    lines, found = command.measured(name, "fast", quick=True)
    assert found == problem
    if name != "slow":  # which may not even have come so far
        assert lines == [{"name": f"{name}.fast"}], "what was measured before counts"


def test_ratios_are_of_the_durable_settings() -> None:
    machine = {"cores": 4}
    own = {"name": "peers.empd.durable.throughput", "samples": [1000.0, 1200.0, 1400.0], "machine": machine}
    nats = {"name": "peers.nats-jetstream.durable.throughput", "value": 100.0}
    [line] = command.ratios([own, nats])
    assert (line["name"], line["value"], line["verdict"]) == ("peers.empd_to_nats", 12, "met")
    assert line["machine"] is machine
    assert command.ratios([nats]) == []


def test_the_names_of_ratios_are_those_of_peers() -> None:
    names = {name: _class_attribute(name, "name") for name in ("nats_peer", "celery_peer")}
    slugs = {text.lower().replace(", ", "-").replace(" ", "-") for text in names.values()}
    assert {name for name, _ in command.RATIOS.values()} == slugs


def test_every_peer_of_the_table_has_its_file_and_says_its_settings() -> None:
    for make in table.PEERS.values():
        file, kind = make.args  # type: ignore[attr-defined]
        tree = ast.parse((HERE / f"{file}.py").read_text())
        assert ast.get_docstring(tree)
        assert kind in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    files = {make.args[0] for make in table.PEERS.values()}  # type: ignore[attr-defined]
    assert files == {path.stem for path in HERE.glob("*_peer.py")}


def _class_attribute(file: str, attribute: str) -> str:
    text = (HERE / f"{file}.py").read_text()
    found = re.search(rf'^    {attribute} = "([^"]+)"$', text, re.MULTILINE)
    assert found, file
    return found[1]


def test_the_pins_are_those_of_the_extra() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    named = {re.split(r"[<>=\[]", text)[0] for text in extra} - {"empd"}
    pins = [line for line in (HERE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert {re.split(r"[<>=\[]", line)[0] for line in pins} == named
    assert all("==" in line for line in pins)


def test_the_report_shows_peers(tmp_path: Path) -> None:
    from empd.bench import machine

    where = {**machine.describe("/tmp"), "quick": True, "endpoint": ""}
    lines = []
    for setting in ("fast", "durable"):
        with Planted(setting, tmp_path) as peer:
            lines += [{**figure.as_line("peers", 2), "machine": where} for figure in measure.measure(peer, TINY)]
    lines += [{**line, "axes": {**line["axes"], "peer": "another"}, "name": f"{line['name']}.2"} for line in lines]
    page = report.write(lines, tmp_path / "page").read_text("utf-8")
    for text in ("peers.planted-here.durable.throughput", "nothing either", "Throughput, jobs/s"):
        assert text in page


def test_commands_are_of_this_environment() -> None:
    assert module("x.y", "z") == (sys.executable, "-m", "x.y", "z")
