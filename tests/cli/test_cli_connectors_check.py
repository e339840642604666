"""`empd connectors check` and `new`: what a terminal shows, and skeletons that work as written."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from empd.cli.conformance import PROTOCOLS, _transport
from empd.cli.main import run
from empd.connectors.conformance import CHECKS
from empd.connectors.simulator.websocket import SimulatedWebSocket

ROOT = Path(__file__).resolve().parents[2]
BAD = """
from empd.connectors.conformance import Case
from empd.connectors.service.simulation import SimulationConnector


class Bad(SimulationConnector):
    async def process(self, job, context):
        context.progress(2.0)
        return {}


CASE = Case(connector=Bad, payload={})
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str]]:
    """Exit code, and check → outcome."""
    code = run(["connectors", "check", *arguments, "--json"])
    body = json.loads(capsys.readouterr().out)
    assert body["ok"] is (code == 0)
    return code, {found["check"]: found["outcome"] for found in body["checks"]}


def test_a_built_in_connector_is_proved_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connectors", "check", "SimulationConnector"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in CHECKS)
    assert "not claimed" in told


@pytest.mark.parametrize(
    ("protocol", "api_config", "transport"),
    [
        ("grpc", {}, "grpc"),
        ("grpc", {"tls": {}}, "tcp"),
        ("websocket", {}, "websocket"),
        ("http", {}, "http"),
        ("local", {}, "http"),
    ],
)
def test_a_gate_understands_what_a_connector_speaks(protocol: str, api_config: dict[str, Any], transport: str) -> None:
    assert _transport(protocol, api_config) == transport


def test_a_service_behind_a_websocket_is_proved_at_its_url(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started, stop = threading.Event(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        server = SimulatedWebSocket()
        found.append(await server.start())
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60)
        url = found[0].replace("ws://", "http://")
        name, payload = "SimulationWebsocketConnector", '{"duration_s": 0.05, "steps": 3}'
        code, outcomes = checked(capsys, name, "--url", url, "--payload", payload)
    finally:
        stop.set()
        thread.join()
    proved = ("one_job", "garbage_messages", "repeated_messages", "dropped_connection", "silent_connection")
    assert {outcomes[check] for check in proved} == {"passed"}
    assert [check for check, outcome in outcomes.items() if outcome == "failed"] == []
    assert code == 0


def test_a_case_of_ones_own_that_fails_is_exit_code_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad_case.py").write_text(BAD)
    code, outcomes = checked(capsys, "bad_case:CASE")
    assert (code, outcomes["progress"], outcomes["one_job"]) == (1, "failed", "passed")
    code, outcomes = checked(capsys, "bad_case:Bad", "--config", '{"steps": 2}')
    assert (code, outcomes["progress"]) == (0, "not claimed")


def test_a_service_of_a_mapping_is_asked_only_live_and_gets_no_job(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = {"connector": "RestSyncConnector", "api_config": {"base_url": "http://127.0.0.1:1", "health_path": "/h"}}
    mapping = here / "mapping.json"
    mapping.write_text(json.dumps({"workers": {"w": {"services": ["ask"]}}, "services": {"ask": service}}))
    code, outcomes = checked(capsys, "ask", "--mapping", str(mapping))
    assert (code, outcomes["unknown_key"], outcomes["health"]) == (0, "passed", "not claimed")
    code, outcomes = checked(capsys, "ask", "--mapping", str(mapping), "--live")
    assert (code, outcomes["health"], outcomes["one_job"]) == (1, "failed", "failed")
    assert run(["connectors", "check", "nobody", "--mapping", str(mapping)]) == 2
    assert "there are: ask" in capsys.readouterr().err


def test_modules_are_found_where_the_daemon_finds_them(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "modules").mkdir()
    (here / "modules/apart.py").write_text(
        "from empd.connectors.base import Service\n\n\nclass Apart(Service):\n    connector_id = 'apart'\n\n"
        "    async def process(self, job, context):\n        return 1\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run(["connectors", "check", "apart:Apart"]) == 2
    assert "No module named 'apart'" in capsys.readouterr().err
    monkeypatch.setenv("EMPD_PYTHON_PATH", str(here / "modules"))
    code, outcomes = checked(capsys, "apart:Apart")
    assert (code, outcomes["unknown_key"]) == (0, "passed")


def test_what_cannot_be_checked_is_a_usage_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["Nobody"], "there is no connector 'Nobody'"),
        (["nothing:Nobody"], "No module named 'nothing'"),
        (["RestSyncConnector", "--config", "{"], "is not JSON"),
        ([], "give the NAME"),
    ):
        assert run(["connectors", "check", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert run(["connectors", "check", "--list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["checks"]) == set(CHECKS)


# --- new -------------------------------------------------------------------------------------------------------------


def test_names_are_spelled_and_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connectors", "new", "my-painter", "--protocol", "http", "--directory", "made"]) == 0
    assert sorted(path.name for path in (here / "made").iterdir()) == [
        "my_painter.json",
        "my_painter.py",
        "test_my_painter.py",
    ]
    assert "to try it: empd run --mapping made/my_painter.json --python-path made;" in capsys.readouterr().out
    assert "class MyPainterConnector(HTTPConnector)" in (here / "made/my_painter.py").read_text()
    mapping = json.loads((here / "made/my_painter.json").read_text())
    assert mapping["connectors"] == {"MyPainterConnector": {"path": "my_painter:MyPainterConnector"}}
    assert run(["connectors", "new", "MyPainter", "--protocol", "poll", "--directory", "made"]) == 2
    assert "not overwritten" in capsys.readouterr().err
    for name in ("1st", "a b", "class", "../x"):
        assert run(["connectors", "new", name, "--protocol", "http"]) == 2


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A skeleton of each protocol, side by side."""
    folder = tmp_path_factory.mktemp("written")
    for protocol in PROTOCOLS:
        assert (
            run(["connectors", "new", f"my-{protocol}-thing", "--protocol", protocol, "--directory", str(folder)]) == 0
        )
    return folder


def tool(folder: Path, *arguments: str) -> None:
    """Runs a tool of this environment there; nothing of this project's own settings reaches it."""
    environ = {**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_skeletons_pass_lint(written: Path) -> None:
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    tool(written, "ruff", "check", *settings, ".")
    tool(written, "ruff", "format", "--check", *settings, ".")


def test_skeletons_pass_types(written: Path) -> None:
    tool(written, "mypy", "--strict", "--no-incremental", ".")


def test_skeletons_pass_their_own_tests(written: Path) -> None:
    tool(written, "pytest", "-q", "-p", "no:cacheprovider", ".")


def test_a_skeletons_mapping_is_one(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for protocol in PROTOCOLS:
        assert run(["config", "check", "--mapping", str(written / f"my_{protocol}_thing.json")]) == 0, (
            capsys.readouterr().out
        )
