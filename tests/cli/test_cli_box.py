"""What `empd config check` says is missing on this box: each thing by its key, with what to do."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from empd.cli import box, main
from empd.cli.codes import ExitCode
from empd.connectors.base import ConnectorConfig, Service
from empd.mapping import Mapping
from empd.settings import Settings

HERE = Path(__file__).parent


class NeedyConnector(Service):
    """Needs a variable of its own."""

    required_env = ("NEEDY_KEY",)
    Config = ConnectorConfig


def lacks(tmp_path: Path, raw: dict[str, Any], environ: dict[str, str], **more: Any) -> dict[str, str]:
    """Place → text."""
    gpus = more.pop("gpus", "none")
    settings = Settings(state_dir=tmp_path, runtime_dir=tmp_path, gpus=gpus, python_path=(HERE,))
    found = box.lacks(Mapping.from_dict(raw, environ), settings, environ, **more)
    assert len(found) == len({each.place for each in found})
    return dict(found)


def one(service: dict[str, Any], **worker: Any) -> dict[str, Any]:
    return {
        "workers": {"w": {"services": ["s"], "is_gpu_bound": service.get("is_gpu_bound", False), **worker}},
        "connectors": {"NeedyConnector": {"path": f"{__name__}:NeedyConnector"}},
        "services": {"s": service},
    }


NEEDY = one({"connector": "NeedyConnector", "required_env": ["OTHER_KEY"]})
SERVER = {
    "connector": "RestSyncConnector",
    "type": "internal",
    "is_gpu_bound": True,
    "server": {"command": ["no-such-program"], "working_directory": "/no/such/gpu{gpu_index}", "base_port": 9000},
}


def test_variables_are_named_one_by_one_over_mapping_and_class(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, runtime_dir=tmp_path, gpus="none")
    told = [each.text for each in box.lacks(Mapping.from_dict(NEEDY, {}), settings, {})]
    assert ["OTHER_KEY" in told[0], "NEEDY_KEY" in told[1], len(told)] == [True, True, 2]
    assert all(box.ENVIRONMENT_FILE in text for text in told)
    assert lacks(tmp_path, NEEDY, {"OTHER_KEY": "a", "NEEDY_KEY": "b"}) == {}
    given = one(NEEDY["services"]["s"], environment={"OTHER_KEY": "a", "NEEDY_KEY": "b"})
    assert lacks(tmp_path, given, {}) == {}


def test_without_a_gpu_workers_that_need_one_are_named(tmp_path: Path) -> None:
    bound = one({"connector": "SimulationConnector", "is_gpu_bound": True})
    assert "no GPU (gpus = none)" in lacks(tmp_path, bound, {})["workers.w"]
    assert lacks(tmp_path, bound, {}, gpus="virtual:1") == {}


def test_programs_and_folders_of_servers_are_looked_for(tmp_path: Path) -> None:
    found = lacks(tmp_path, one(SERVER), {"PATH": "/usr/bin:/bin"}, gpus="virtual:1")
    assert "no-such-program" in found["services.s.server.command"]
    assert "/no/such/gpu0" in found["services.s.server.working_directory"]
    there = {**SERVER, "server": {"command": ["./run"], "working_directory": str(tmp_path), "base_port": 9000}}
    assert set(lacks(tmp_path, one(there), {}, gpus="virtual:1")) == {"services.s.server.command"}
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    assert lacks(tmp_path, one(there), {}, gpus="virtual:1") == {}


@pytest.mark.parametrize(
    ("service", "place", "said"),
    [
        ({"connector": "PythonConnector", "api_config": {"callable": "gone.a:f"}}, "api_config.callable", "gone"),
        ({"connector": "SimulationConnector", "api_config": {"stepz": 1}}, "connector", "stepz"),
        ({"connector": "SimulationConnector", "plugins": ["no_such:Plugin"]}, "plugins", "no_such"),
    ],
)
def test_modules_keys_and_plugins_are_tried(tmp_path: Path, service: dict[str, Any], place: str, said: str) -> None:
    found = lacks(tmp_path, one(service), {})
    assert list(found) == [f"services.s.{place}"]
    assert said in found[f"services.s.{place}"]


def test_a_module_that_is_there_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "box_breaks_on_import.py").write_text("raise RuntimeError\n")
    settings = Settings(state_dir=tmp_path, runtime_dir=tmp_path, gpus="none", python_path=(tmp_path,))
    mapping = Mapping.from_dict(
        one({"connector": "PythonConnector", "api_config": {"callable": "box_breaks_on_import:f"}}), {}
    )
    assert box.lacks(mapping, settings, {}) == []


def test_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empd.connectors.service.kserve", "empd.connectors.protocol.grpc"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    found = lacks(tmp_path, one({"connector": "KServeConnector", "api_config": {"target": "h:1"}}), {})
    assert "pip install 'empd[grpc]'" in found["services.s.connector"]

    azure = {"default": {"provider": "azure", "container": "c", "account": "a"}}
    raw = {**one({"connector": "SimulationConnector"}), "assets": azure}
    assert lacks(tmp_path, raw, {}) == {}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "azure.identity" else find(name))
    assert "pip install 'empd[azure]'" in lacks(tmp_path, raw, {})["assets.default"]
    azure["default"]["key"] = "a2V5"
    assert lacks(tmp_path, raw, {}) == {}


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """A server that gives the status which stands first in the list."""
    statuses = [200]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0])
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", statuses
        server.shutdown()


def test_services_are_asked_only_on_demand(tmp_path: Path, answering: tuple[str, list[int]]) -> None:
    url, statuses = answering
    config = {"base_url": url, "health_path": "/health", "auth": {"type": "bearer", "token": "very-secret"}}
    raw = one({"connector": "RestSyncConnector", "api_config": config})
    assert lacks(tmp_path, raw, {}, ask=True) == {}
    statuses[0] = 401
    told = lacks(tmp_path, raw, {}, ask=True)["services.s"]
    assert url in told
    assert "credentials" in told
    assert "very-secret" not in told
    assert lacks(tmp_path, raw, {}) == {}


def test_the_command_tells_it_and_fails_only_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPD_GPUS", "none")
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps(one({"connector": "SimulationConnector", "is_gpu_bound": True})))
    command = ["config", "check", "--mapping", str(mapping)]
    assert main.run(command) == ExitCode.OK
    ok, missing = capsys.readouterr().out.splitlines()
    assert ok.startswith("ok: 1 worker types")
    assert missing.startswith("missing here: workers.w: ")
    assert main.run([*command, "--strict", "--json"]) == ExitCode.FAILED
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert document["problems"] == []
    assert document["missing"][0].startswith("workers.w: ")
    assert main.run([*command, "--strict", "--gpus", "virtual:1"]) == ExitCode.OK


def test_check_takes_the_flags_that_run_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mapping = tmp_path / "mapping.json"
    service = {"connector": "PythonConnector", "api_config": {"callable": "only_there:square"}}
    mapping.write_text(json.dumps(one(service)))
    (tmp_path / "only_there.py").write_text("square = abs\n")
    command = ["config", "check", "--strict", "--mapping", str(mapping)]
    assert main.run(command) == ExitCode.FAILED
    assert "there is no module only_there" in capsys.readouterr().out
    assert main.run([*command, "--python-path", str(tmp_path)]) == ExitCode.OK
