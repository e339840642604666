"""The peers' frame, and those peers that need nothing but what is here: empd itself and raw ZeroMQ."""

from __future__ import annotations

import ast
import itertools
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from empd import __version__
from empd.bench import machine, processes, report
from empd.bench.peers import PEERS
from empd.bench.running import BenchError, wait_until

ROOT = Path(__file__).parents[2]
HERE = ROOT / "bench" / "peers"
sys.path.insert(0, str(ROOT / "bench"))

from peers import __main__ as command  # noqa: E402
from peers import measure, table  # noqa: E402
from peers.interface import Peer, end, module, versions  # noqa: E402

TINY = measure.Size(seconds=0.01, jobs_max=600, alone=3, large=1, waiting=2000, runs=2, kills=2)
REAL = ("empd", "zeromq", "zeromq-proxy", "zeromq-loop")

RUN = "import sys; from peers import job; job.run(bytes.fromhex(sys.argv[1]))"


class Planted(Peer):
    """Answers from this process."""

    name = "Planted, here"
    package = "empd"
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


class Patient(Forgetful):
    """Runs it in two processes, one after the other."""

    def hold(self, payload: bytes) -> None:
        code = f"import subprocess, sys; [subprocess.run([sys.executable, '-c', {RUN!r}, sys.argv[1]]) for _ in '12']"
        self.work(sys.executable, "-c", code, payload.hex())


def test_a_peer_gives_its_figures(tmp_path: Path) -> None:
    with Planted("durable", tmp_path) as peer:
        found = {figure.name: figure for figure in measure.measure(peer, TINY)}
        assert list(measure.measure_waiting(peer, TINY)) == [], "without a broker nothing waits anywhere"
    names = ("throughput", "latency", "latency_p99", "payload")
    assert list(found) == [f"peers.planted-here.durable.{name}" for name in names]
    figure = found["peers.planted-here.durable.throughput"]
    assert figure.axes == {"peer": "Planted, here", "setting": "durable", "of": "throughput"}
    assert figure.settings == {"setting": "nothing either", "versions": f"empd {__version__}"}
    assert {plot.where["of"] for plot in PEERS.plots} <= {*names, "memory", "recovery"}


APART = """
import socket, sys
from peers import network
try:
    network.leave()
except OSError as error:
    sys.exit(str(error))
own = socket.create_server(("127.0.0.1", 0))
socket.create_connection(own.getsockname(), 5).close()
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
except OSError:
    print("apart")
"""


def test_who_leaves_the_network_is_reached_by_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        command = [sys.executable, "-c", APART, str(outside.getsockname()[1])]
        ended = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if "no network of its own" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.stdout == "apart\n", ended.stderr


def test_versions_are_told() -> None:
    program = (sys.executable, "-c", "print('a server, v=7.0.15 sha=1.2 of bits')")
    assert versions("empd", program) == f"empd {__version__}, {sys.executable} 7.0.15"
    for make in table.PEERS.values():
        file, kind = make.args  # type: ignore[attr-defined]
        text = (HERE / f"{file}.py").read_text()
        assert 'package = "' in text, kind
        assert ("server = " in text) == ("peers.servers" in text), kind


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


def test_what_is_slow_is_done_less_often() -> None:
    size = msgspec.structs.replace(TINY, part_s=0.0)
    assert len(measure.repeated(lambda: 1.0, 100, limit_s=60)) == 100
    assert len(measure.repeated(lambda: 1.0, 100, limit_s=0)) == measure.FEWEST
    assert size.waiting > measure.PUT_JOBS


def test_jobs_that_are_put_slowly_are_fewer_and_their_memory_is_theirs(tmp_path: Path) -> None:
    size = msgspec.structs.replace(TINY, part_s=0.0)
    with Planted("fast", tmp_path) as peer:
        peer.broker_pid = os.getpid()
        [few] = measure.measure_waiting(peer, size)
        [all_of_them] = measure.measure_waiting(peer, msgspec.structs.replace(size, part_s=60.0))
    assert (few.details["waiting"], all_of_them.details["waiting"]) == (measure.PUT_JOBS, size.waiting)


def test_one_kill_is_enough_where_it_takes_long(tmp_path: Path) -> None:
    size = msgspec.structs.replace(TINY, kills=3, part_s=0.0)
    number = itertools.count()

    def fresh() -> Patient:
        directory = tmp_path / str(next(number))
        directory.mkdir()
        return Patient("fast", directory)

    [figure] = measure.measure_recovery(fresh, size)
    assert (figure.details["again"], len(figure.samples)) == (True, 1)
    [figure] = measure.measure_recovery(fresh, msgspec.structs.replace(size, part_s=60.0))
    assert len(figure.samples) == 3


def test_a_job_that_does_not_start_again_has_the_limit_as_its_figure(tmp_path: Path) -> None:
    size = msgspec.structs.replace(TINY, kills=3, again_limit_s=0.2)
    [figure] = measure.measure_recovery(lambda: Forgetful("fast", tmp_path), size)
    assert (figure.value, figure.details["again"], len(figure.samples)) == (200, False, 1)


def test_a_peer_that_says_how_long_it_takes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forgetful, "again_limit_s", 0.4)
    size = msgspec.structs.replace(TINY, again_limit_s=0.2)
    [figure] = measure.measure_recovery(lambda: Forgetful("fast", tmp_path), size)
    assert figure.value == 400


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package `peers` whose measure prints, fails or takes too long, by the peer's name."""
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "__init__.py").write_text("")
    (tmp_path / "peers" / "measure.py").write_text(
        "import sys, time\nname, setting = sys.argv[1:3]\n"
        'print(\'{"name": "%s.%s"}\' % (name, setting), flush=True)\n'
        "if name == 'broken': raise RuntimeError('it broke')\n"
        "if name == 'slow':\n"
        "    import pathlib, subprocess\n"
        "    child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    pathlib.Path(sys.argv[4]).joinpath('data').write_text('')\n"
        "    pathlib.Path(__file__).with_name('child').write_text(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setattr(command, "__file__", str(tmp_path / "peers" / "__main__.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "problem"), [("well", ""), ("broken", "RuntimeError: it broke"), ("slow", "it took too long")]
)
def test_each_runs_in_a_process_of_its_own_bounded_in_time(
    name: str,
    problem: str,
    planted: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    child = planted / "peers" / "child"
    monkeypatch.setattr(command, "PLACE", str(tmp_path_factory.mktemp("place")))
    if name == "slow":
        monkeypatch.setattr(command, "QUICK_LIMIT_S", 0.1)
        real = command.kill_family

        def late(pid: int) -> None:
            wait_until(child.exists, "what it starts")
            wait_until(child.read_text, "its number")
            real(pid)

        monkeypatch.setattr(command, "kill_family", late)
    lines, found = command.measured(name, "fast", quick=True)
    assert found == problem
    assert lines == [{"name": f"{name}.fast"}], "what was measured before counts"
    if name == "slow":
        wait_until(lambda: not processes.exists(int(child.read_text())), "what it had started to end")
    assert list(Path(command.PLACE).iterdir()) == []


@pytest.mark.usefixtures("planted")
def test_one_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> type[Peer]:
        raise ModuleNotFoundError("No module named 'absent'")

    kinds = {"absent": absent, "broken": lambda: Planted, "well": lambda: Planted}
    monkeypatch.setattr(command, "PEERS", kinds)
    file = tmp_path / "lines.jsonl"
    with pytest.raises(SystemExit) as ended:
        command.peers.main(["--json", str(file)], standalone_mode=False)
    assert ended.value.code == 1
    names = [msgspec.json.decode(line)["name"] for line in file.read_text().splitlines()]
    assert names == ["broken.fast", "broken.durable", "well.fast", "well.durable"]
    said = capsys.readouterr().err
    assert "absent: No module named 'absent'" in said
    assert "broken, durable: RuntimeError: it broke in" in said
    assert "well, durable: 1 figures in" in said


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


def test_empd_is_measured_there_with_the_libraries_of_its_tests() -> None:
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"grep -E '\^\(([^)]+)\)==' requirements-dev\.lock", makefile)
    assert found
    assert tuple(sorted(found[1].split("|"))) == tuple(sorted(machine.LIBRARIES))
    locked = {line.partition("==")[0] for line in (ROOT / "requirements-dev.lock").read_text().splitlines()}
    assert set(machine.LIBRARIES) <= locked
    assert makefile.count("-c $(PEERS)/constraints.txt") == 2


@pytest.mark.parametrize(("code", "has_own"), [(0, True), (3, False)])
def test_the_page_is_made_even_where_a_peer_fails(code: int, has_own: bool, tmp_path: Path) -> None:
    """`make bench-peers` as it is, with programs that only note how they were called."""
    for name in ("Makefile", "pyproject.toml", "requirements-dev.lock", "bench/peers/requirements.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    for path, status in ((".venv/bin/empd", 0), (".venv/peers/bin/python", code)):
        program = tmp_path / path
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit {status}\n')
        program.chmod(0o755)
    for ready in (".venv/.ready", ".venv/peers/.ready"):
        (tmp_path / ready).touch()
    (tmp_path / ".bench").mkdir()
    if has_own:
        (tmp_path / ".bench" / "empd.jsonl").touch()
    made = ["make", "-C", str(tmp_path), "bench-peers", "PEERS_OPTIONS=--quick"]
    ended = subprocess.run(made, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) == (code == 0), ended.stderr
    own = ".bench/empd.jsonl " if has_own else ""
    assert (tmp_path / "calls").read_text().splitlines() == [
        "-m peers --json .bench/peers.jsonl --quick",
        f"bench report {own}.bench/peers.jsonl --into .bench",
    ]


def test_the_report_shows_peers(tmp_path: Path) -> None:
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
