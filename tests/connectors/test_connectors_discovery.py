"""Where configuration and endpoints come from: environment, mapping, registry, defaults; and what happens when they
change while the daemon runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd import builtin
from empd.clock import NS_PER_S
from empd.connectors import registrations, registry
from empd.connectors.base import ConnectorConfig, Service
from empd.connectors.registrations import LOOK_NS, Registered, Registration, Registrations
from empd.device import Device
from empd.errors import ConfigError
from empd.mapping import Mapping
from tests.box import Box, mapping_of, service, wait_until

# --- the registry's book ---------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10 * NS_PER_S

    def __call__(self) -> int:
        return self.now_ns


def entry(endpoint_id: str, url: str, gpu: int | str | None = None, name: str = "draw") -> Registration:
    return Registration(service=name, id=endpoint_id, url=url, gpu=gpu)


def device(index: int) -> Device:
    return Device(index=index, uuid=f"GPU-{index}", name="x", memory_total_bytes=0)


def reader(directory: Path, clock: Clock, worker: str = "gpu0", gpu: int | None = 0) -> Registered:
    return Registered(directory, "draw", worker, None if gpu is None else device(gpu), clock)


def test_each_gpu_has_what_was_registered_for_it(tmp_path: Path) -> None:
    clock = Clock()
    book = Registrations(tmp_path, clock)
    readers = [reader(tmp_path, clock, f"gpu{n}", n) for n in range(3)]
    assert [each() for each in readers] == ["", "", ""]
    assert book.put(entry("a", "http://a", 0), 60)
    assert book.put(entry("b", "http://b", "GPU-1"), 60)
    assert book.put(entry("c", "http://c"), 60)
    assert book.put(entry("z", "http://z", 2, name="other"), 60)
    clock.now_ns += LOOK_NS
    assert [each() for each in readers] == ["http://a", "http://b", "http://c"]


def test_what_is_not_repeated_expires_and_what_is_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    book, seen = Registrations(tmp_path, clock), reader(tmp_path, clock)
    book.put(entry("a", "http://a"), 2)
    assert seen() == "http://a"
    clock.now_ns += NS_PER_S
    book.put(entry("a", "http://a2"), 2)
    clock.now_ns += NS_PER_S + NS_PER_S // 2
    assert seen() == "http://a2"
    clock.now_ns += NS_PER_S
    assert (seen(), book.living()) == ("", [])
    book.put(entry("a", "http://a3"), 2)
    clock.now_ns += LOOK_NS
    assert seen() == "http://a3"
    assert book.remove("draw", "a")
    assert not book.remove("draw", "a")
    clock.now_ns += LOOK_NS
    assert seen() == ""


def test_shared_endpoints_are_spread_and_each_worker_keeps_to_its_own(tmp_path: Path) -> None:
    clock = Clock()
    book = Registrations(tmp_path, clock)
    for n in range(4):
        book.put(entry(str(n), f"http://{n}"), 60)
    first = [reader(tmp_path, clock, f"cpu-{n}", None)() for n in range(40)]
    assert len(set(first)) == 4
    # One goes: only its own workers move.
    book.remove("draw", "2")
    second = [reader(tmp_path, clock, f"cpu-{n}", None)() for n in range(40)]
    assert all(a == b for a, b in zip(first, second, strict=True) if a != "http://2")
    assert "http://2" not in second


@given(st.binary(max_size=200))
def test_a_damaged_book_is_an_empty_one(tmp_path_factory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("book")
    (directory / "endpoints.json").write_bytes(data)
    assert reader(directory, Clock())() == ""


def test_many_that_register_at_once_all_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = registrations._read

    def slowly(path: Path) -> list[Registration]:
        found = read(path)
        time.sleep(0.005)  # so that all of them would have read before the first one writes
        return found

    monkeypatch.setattr(registrations, "_read", slowly)
    names = [f"e{number}" for number in range(20)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: Registrations(tmp_path).put(entry(name, f"http://{name}"), 60), names))
    assert {each.id for each in Registrations(tmp_path).living()} == set(names)
    with ThreadPoolExecutor(len(names)) as pool:
        assert all(pool.map(lambda name: Registrations(tmp_path).remove("draw", name), names[1:]))
    assert [each.id for each in Registrations(tmp_path).living()] == names[:1]


def test_a_book_of_another_boot_counts_for_nothing(tmp_path: Path) -> None:
    clock = Clock()
    Registrations(tmp_path, clock).put(entry("a", "http://a"), 60)
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    assert reader(tmp_path, clock)() == ""


# --- configuration ---------------------------------------------------------------------------------------------------


class DrawConfig(ConnectorConfig):
    steps: int = 20
    sampler: str = "euler"
    sizes: list[int] = []


class Draw(Service):
    Config: ClassVar[type[ConnectorConfig]] = DrawConfig


def test_the_environment_goes_before_the_mapping_and_that_before_the_defaults() -> None:
    environ = {"DRAW_IT_STEPS": "50", "DRAW_IT_SIZES": "[1, 2]", "DRAW_IT_UNKNOWN": "x", "DRAW_IT_SAMPLER": ""}
    config = registry.configure(Draw, {"steps": 30, "sampler": "dpm"}, "draw-it", environ)
    assert config == DrawConfig(steps=50, sampler="dpm", sizes=[1, 2])
    assert registry.configure(Draw, {}, "draw-it", {}) == DrawConfig()


@pytest.mark.parametrize(
    ("config", "environ", "words"),
    [
        ({"steps": "x"}, {}, "services.draw.api_config: steps: Expected `int`"),
        ({}, {"DRAW_STEPS": "x"}, "environment: DRAW_STEPS: steps: Expected `int`"),
    ],
)
def test_a_wrong_value_is_named_with_where_it_came_from(config: Any, environ: dict[str, str], words: str) -> None:
    with pytest.raises(registry.ConnectorUnavailable, match=words):
        registry.configure(Draw, config, "draw", environ)


def test_a_connector_is_called_as_its_class() -> None:
    with pytest.raises(registry.ConnectorUnavailable, match="path names the class 'SimulationConnector'"):
        registry.load_class("Other", "empd.connectors.service.simulation:SimulationConnector")


def test_a_mapping_may_name_what_a_package_offers(monkeypatch) -> None:
    raw = mapping_of(s=service("Installed"))
    with pytest.raises(ConfigError, match='no connector "Installed"'):
        Mapping.from_dict(raw, {})
    monkeypatch.setattr("empd.mapping.installed_connectors", lambda: {"Installed": "x:Installed"})
    assert Mapping.from_dict(raw, {}).connector_path("Installed") == ""
    assert builtin.ENTRY_POINT_GROUP == "empd.connectors"


# --- in a whole daemon -----------------------------------------------------------------------------------------------


def mapping(word: str = "first", *, good: bool = True, live: str = "one") -> dict[str, Any]:
    raw = mapping_of(
        word=service("WordConnector", api_config={"word": word, "good": good}),
        live=service("LiveConnector", api_config={"word": live}),
        away=service("PingConnector"),
        broken=service("NoSuchConnector"),
        wrong=service("WordConnector", api_config={"wird": "x"}),
    )
    modules = {"WordConnector": "settings_of", "LiveConnector": "settings_of", "PingConnector": "instances"}
    raw["connectors"] = {name: {"path": f"{module}:{name}"} for name, module in modules.items()}
    raw["connectors"]["NoSuchConnector"] = {"path": "no_such_module:NoSuchConnector"}
    return raw


@pytest.fixture(scope="module")
def daemon() -> Iterator[Box]:
    with Box(mapping()) as box:
        yield box


def ask(daemon: Box, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(daemon.http() + path, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def instance(daemon: Box, name: str) -> dict[str, Any]:
    """What the worker of a service says of it."""

    def told() -> dict[str, Any] | None:
        _, body = ask(daemon, "GET", "/v1/services")
        (found,) = [each for each in body["services"] if each["name"] == name]
        return found["instances"][0] if found["instances"] else None

    return wait_until(told, f"the facts of {name}")


def result(daemon: Box, name: str) -> dict[str, Any]:
    with daemon.client() as client:
        return client.submit(name, {}).result(30)


def test_one_bad_connector_never_stops_another(daemon: Box) -> None:
    assert result(daemon, "word")["word"] == "first"
    assert "No module named 'no_such_module'" in instance(daemon, "broken")["reason"]
    assert "unknown field `wird`" in instance(daemon, "wrong")["reason"]


def test_an_endpoint_registers_itself_and_is_used_until_it_is_taken_back(daemon: Box) -> None:
    path = "/v1/services/away/endpoints"
    assert ask(daemon, "GET", path) == (200, {"endpoints": []})
    url = "http://127.0.0.1:9"
    status, body = ask(daemon, "PUT", f"{path}/one", {"url": url + "/", "ttl_s": 3600})
    assert (status, body["url"], body["ttl_s"]) == (200, url, 3600)
    wait_until(lambda: instance(daemon, "away")["endpoint"] == url, "the worker to use the registered endpoint")
    (shown,) = ask(daemon, "GET", path)[1]["endpoints"]
    assert 3500 < shown["expires_in_s"] <= 3600
    assert ask(daemon, "DELETE", f"{path}/one")[0] == 200
    assert ask(daemon, "DELETE", f"{path}/one")[0] == 404
    wait_until(lambda: instance(daemon, "away")["endpoint"] is None, "the worker to know that it is gone")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/services/nowhere/endpoints/a", {"url": "http://x"}, 404),
        ("/v1/services/away/endpoints/a", {"url": "file:///etc/passwd"}, 400),
        ("/v1/services/away/endpoints/a", {"url": "http://x", "ttl_s": -1}, 400),
        ("/v1/services/away/endpoints/a", {"url": "http://x", "more": 1}, 400),
        ("/v1/services/away/endpoints/a%20b", {"url": "http://x"}, 400),
    ],
)
def test_what_cannot_be_registered_is_refused(daemon: Box, path: str, body: Any, status: int) -> None:
    code, problem = ask(daemon, "PUT", path, body)
    assert (code, bool(problem["detail"])) == (status, True)


def reload(daemon: Box, raw: dict[str, Any]) -> None:
    daemon.mapping_path.write_text(json.dumps(raw))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)


def test_a_changed_configuration_is_taken_over_in_place(daemon: Box) -> None:
    pids = {name: daemon.pid(f"{name}-0") for name in ("word", "live")}
    before = result(daemon, "live")
    reload(daemon, mapping("second", live="two"))
    wait_until(lambda: result(daemon, "word")["word"] == "second", "the new word")
    wait_until(lambda: result(daemon, "live") == {**before, "word": "two"}, "the same connector with another word")
    # One that is no good leaves the old one in force, and says so.
    reload(daemon, mapping("third", good=False, live="two"))
    refused = wait_until(lambda: instance(daemon, "word").get("configuration_refused"), "the refusal to be shown")
    assert "it cannot be opened like this" in refused
    wait_until(lambda: instance(daemon, "word")["state"] == "idle", "the old configuration to be open again")
    assert result(daemon, "word")["word"] == "second"
    assert {name: daemon.pid(f"{name}-0") for name in pids} == pids
    reload(daemon, mapping("fourth", live="two"))
    wait_until(lambda: result(daemon, "word")["word"] == "fourth", "the next word")
    wait_until(lambda: "configuration_refused" not in instance(daemon, "word"), "the refusal to be forgotten")


# --- the command line ------------------------------------------------------------------------------------------------


def empd(daemon: Box, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "EMPD_PYTHON_PATH": str(Path(__file__).parents[1] / "operators"), "COLUMNS": "200"}
    environ["EMPD_ENDPOINT"] = f"ipc://{daemon.runtime_dir}/empd.sock"
    command = [sys.executable, "-m", "empd", "connectors", *arguments, "--mapping", str(daemon.mapping_path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def test_connectors_are_listed_with_every_problem(daemon: Box) -> None:
    told = empd(daemon, "list", "--json")
    assert told.returncode == 1
    body = json.loads(told.stdout)
    rows = {row["name"]: row for row in body["connectors"]}
    assert rows["PythonConnector"]["origin"] == "built in"
    assert (rows["PingConnector"]["origin"], rows["PingConnector"]["protocol"]) == ("mapping", "http")
    assert rows["PingConnector"]["abilities"] == ["models", "service_info"]
    assert len(body["problems"]) == 2
    assert "unknown field `wird`" in rows["WordConnector"]["problems"][0]
    text = empd(daemon, "list").stdout
    assert "problem: connector 'NoSuchConnector'" in text


def test_a_connector_is_shown_with_its_keys_and_instances(daemon: Box) -> None:
    instance(daemon, "word")
    body = json.loads(empd(daemon, "show", "WordConnector", "--json").stdout)
    assert (body["configuration"]["word"]["required"], body["configuration"]["good"]["default"]) == (True, True)
    assert {each["service"] for each in body["instances"]} == {"word", "wrong"}
    text = empd(daemon, "show", "WordConnector").stdout
    assert "word:WordConnector" not in text
    assert "settings_of:WordConnector" in text
    assert "required" in text
    wrong = empd(daemon, "show", "WordConector")
    assert (wrong.returncode, "did you mean WordConnector?" in wrong.stderr) == (2, True)
