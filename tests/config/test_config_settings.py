"""Settings: one table, three places, the later wins, every mistake at once."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd import loading
from empd.checking import format_size, parse_size
from empd.errors import ConfigError
from empd.loading import load, load_places, load_with_sources
from empd.samples import sample_toml, settings_schema
from empd.settings import SETTINGS, Settings

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine has in /etc/empd must not show."""
    monkeypatch.setattr(loading, "CONFIG_FILE", tmp_path / "absent" / "empd.toml")
    monkeypatch.setattr(loading, "MAPPING_FILE", tmp_path / "absent" / "service-mapping.json")


def problems_of(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ or {})
    return caught.value.problems


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "empd.toml"
    path.write_text(text)
    return path


def test_later_place_wins_and_its_source_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "drain_s = 1\nretries = 1\nmax_crashes = 1\n")
    environ = {"EMPD_CONFIG": str(path), "EMPD_RETRIES": "2", "EMPD_MAX_CRASHES": "2"}
    loaded = load_with_sources({"max_crashes": 3}, environ)
    assert (loaded.settings.drain_s, loaded.settings.retries, loaded.settings.max_crashes) == (1.0, 2, 3)
    assert loaded.sources["drain_s"] == str(path)
    assert loaded.sources["retries"] == "environment"
    assert loaded.sources["max_crashes"] == "command line"
    assert loaded.sources["http"] == "default"


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_is_taken_from_all_three_places(name: str, tmp_path: Path) -> None:
    row = SETTINGS[name]
    (tmp_path / "there").mkdir()
    mapping = tmp_path / "there" / "m.json"
    mapping.write_text("{}")
    config = written(tmp_path, "")
    special = {
        "config": str(config),
        "mapping": str(mapping),
        "state_dir": "/tmp/a",
        "runtime_dir": "/tmp/b",
        "endpoint": "ipc:///tmp/c",
        "http": "0.0.0.0:0",
        "gpus": "virtual:3",
        "durability": "os",
        "preload": "json",
        "python_path": "/tmp/d",
        "log_level": "debug",
        "curve_dir": str(tmp_path / "there"),
        "backoff_s": "30",
        "accept_loss": "true",
    }
    text = special.get(name, "61" if name == "backoff_max_s" else "7")
    by_flag = getattr(load({row.flag.removeprefix("--"): text}, {}), name)
    by_environment = getattr(load({}, {row.environment: text}), name)
    assert by_flag == by_environment != row.default
    if name != "config":
        toml = f'["{text}"]' if isinstance(row.default, tuple) else f'"{text}"'
        written(tmp_path, f"{name} = {toml}")
        assert getattr(load({"config": str(config)}, {}), name) == by_flag


def test_all_problems_are_named_at_once_with_place_key_and_what_is_accepted(tmp_path: Path) -> None:
    path = written(tmp_path, 'drian_s = 3\ngpus = ["A100"]\nqueue_bytes_max = "many"\n[broker]\nx = 1\n')
    found = problems_of(
        {"config": path, "durability": "fsinc", "retries": -1},
        {"EMPD_HTTP": "localhost", "EMPD_STAT_DIR": "/x", "EMPD_TIMEOUT_S": "nan"},
    )
    expected = [
        ("command line: --durability: 'fsinc'", '"fsync" or "os" or "memory"'),
        ("command line: --retries: -1", "a whole number from 0 to 10000"),
        ("environment: EMPD_HTTP: 'localhost'", "HOST:PORT"),
        ("environment: EMPD_STAT_DIR: unknown", 'did you mean "EMPD_STATE_DIR"?'),
        ("environment: EMPD_TIMEOUT_S: 'nan'", "a number from 0"),
        (f"{path}: drian_s: unknown key", 'did you mean "drain_s"?'),
        (f"{path}: gpus: ['A100']", "a list of GPU UUIDs"),
        (f"{path}: queue_bytes_max: 'many'", '"512 MiB"'),
        (f"{path}: broker: unknown key", "state_dir"),
    ]
    assert len(found) == len(expected)
    for problem, (start, rest) in zip(found, expected, strict=True):
        assert problem.startswith(start)
        assert rest in problem
        assert "accepted: " in problem or "did you mean" in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http", "127.0.0.1"),
        ("http", ":80"),
        ("http", "127.0.0.1:65536"),
        ("gpus", "virtual:0"),
        ("gpus", "virtual:"),
        ("gpus", "some"),
        ("gpus", ""),
        ("gpus", "GPU-1,GPU-1"),
        ("preload", "torch"),
        ("preload", "numpy.linalg"),
        ("preload", "not a module"),
        ("endpoint", "http://x"),
        ("endpoint", "tcp://nowhere"),
        ("heartbeat_s", "0"),
        ("timeout_s", "inf"),
        ("max_crashes", "1.5"),
        ("queue_bytes_max", "-1"),
        ("state_dir", ""),
        ("state_dir", "a\0b"),
        ("state_dir", "~nobody-of-this-name/x"),
        ("log_level", "loud"),
    ],
)
def test_values_that_cannot_be_are_refused(name: str, value: str) -> None:
    (problem,) = problems_of({name: value})
    assert problem.startswith(f"command line: {SETTINGS[name].flag}: ")
    assert SETTINGS[name].accepted in problem


@pytest.mark.parametrize(
    "toml", ["retries = true", "retries = [1]", "preload = 5", "preload = 'zmq,msgspec'", "gpus = 1"]
)
def test_wrong_types_in_the_file_are_refused(toml: str, tmp_path: Path) -> None:
    (problem,) = problems_of({"config": written(tmp_path, toml)})
    assert "does not fit" in problem


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    (problem,) = problems_of({"config": written(tmp_path, "drain_s = \n")})
    assert "not TOML" in problem
    assert "line 1" in problem
    (problem,) = problems_of({"config": tmp_path / "nowhere.toml"})
    assert "cannot be read: No such file" in problem
    (tmp_path / "empd.toml").write_bytes(b"x = '\xff'")
    (problem,) = problems_of({"config": tmp_path / "empd.toml"})
    assert "not UTF-8" in problem
    (problem,) = problems_of({"mapping": tmp_path / "nowhere.json"})
    assert problem.startswith("command line: --mapping: ")


def test_config_file_cannot_name_another(tmp_path: Path) -> None:
    (problem,) = problems_of({"config": written(tmp_path, "config = '/x'")})
    assert ": config: unknown key" in problem


def test_runtime_dir_must_leave_room_for_socket_names() -> None:
    fits = "/tmp/" + "r" * 87
    assert max(len(path) for path in sockets(load({"runtime_dir": fits}, {}))) <= 107
    (problem,) = problems_of({"runtime_dir": fits + "r"})
    assert "too long for unix sockets; accepted: a path of at most 92 bytes" in problem


def sockets(settings: Settings) -> list[str]:
    endpoints = [
        settings.clients_endpoint,
        settings.workers_endpoint,
        settings.history_endpoint,
        settings.telemetry_endpoint,
    ]
    return [endpoint.removeprefix("ipc://") for endpoint in endpoints]


def test_tcp_needs_keys(tmp_path: Path) -> None:
    (problem,) = problems_of({"endpoint": "tcp://0.0.0.0:5555"})
    assert "curve_dir" in problem
    assert load({"endpoint": "tcp://[::]:5555", "curve_dir": tmp_path}, {}).clients_endpoint == "tcp://[::]:5555"


def test_backoff_limits_must_be_in_order() -> None:
    (problem,) = problems_of({"backoff_s": 10, "backoff_max_s": 5})
    assert problem == "command line: --backoff-max-s: 5 is below backoff_s; accepted: a number from 10"


def test_directories_default_to_systemd_then_xdg_then_home() -> None:
    systemd = {"STATE_DIRECTORY": "/var/lib/empd:/other", "RUNTIME_DIRECTORY": "/run/empd", "XDG_RUNTIME_DIR": "/x"}
    settings = load({}, systemd)
    assert (settings.state_dir, settings.runtime_dir) == (Path("/var/lib/empd"), Path("/run/empd"))
    settings = load({}, {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/h"})
    assert (settings.state_dir, settings.runtime_dir) == (Path("/s/empd"), Path("/run/user/7/empd"))
    settings = load({}, {"HOME": "/h"})
    assert (settings.state_dir, settings.runtime_dir) == (
        Path("/h/.local/state/empd"),
        Path(f"/tmp/empd-{os.getuid()}"),
    )


def test_system_files_are_taken_where_they_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path, "drain_s = 3")
    (tmp_path / "m.json").write_text("{}")
    monkeypatch.setattr(loading, "CONFIG_FILE", path)
    monkeypatch.setattr(loading, "MAPPING_FILE", tmp_path / "m.json")
    settings = load({}, {})
    assert (settings.config, settings.mapping, settings.drain_s) == (path, tmp_path / "m.json", 3.0)


def test_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({"state_dir": "a/../b", "python_path": "lib,~/mine"}, {})
    assert settings.state_dir == tmp_path / "b"
    assert settings.python_path == (tmp_path / "lib", Path("~/mine").expanduser())


def test_derived_places() -> None:
    settings = load({"runtime_dir": "/tmp/r", "state_dir": "/tmp/s"}, {})
    assert settings.clients_endpoint == "ipc:///tmp/r/empd.sock"
    assert len(set(sockets(settings))) == 4
    assert settings.journal_path == Path("/tmp/s/journal.db")
    assert settings.history_path == Path("/tmp/s/history.db")
    assert settings.spool_dir == Path("/tmp/s/spool")
    assert settings.http_address == ("127.0.0.1", 8780)
    assert load({"http": "[::1]:0"}, {}).http_address == ("::1", 0)
    memory = load({"runtime_dir": "/tmp/r", "durability": "memory"}, {})
    assert memory.journal_path == Path("/tmp/r/journal.db")


def test_volatile_directory_belongs_to_one_runtime_directory() -> None:
    one, other = load({"runtime_dir": "/tmp/r"}, {}).volatile_dir, load({"runtime_dir": "/tmp/q"}, {}).volatile_dir
    assert one != other
    assert one == load({"runtime_dir": "/tmp/r/"}, {}).volatile_dir
    assert one.name.startswith(f"empd-{os.getuid()}-")
    assert one.parent == Path("/dev/shm")


def test_gpus_in_all_forms(tmp_path: Path) -> None:
    assert load({"gpus": "GPU-a"}, {}).gpus == ("GPU-a",)
    assert load({}, {"EMPD_GPUS": "GPU-a, MIG-b"}).gpus == ("GPU-a", "MIG-b")
    assert load({"config": written(tmp_path, "gpus = ['GPU-a']")}, {}).gpus == ("GPU-a",)
    assert load({"gpus": "virtual:4"}, {}).gpus == "virtual:4"
    assert load({"gpus": "GPU-a,GPU-b"}, {}).gpus == ("GPU-a", "GPU-b")


def test_empty_variables_and_flags_not_given_count_as_absent() -> None:
    assert load({"http": None}, {"EMPD_HTTP": "", "EMPD_RETRIES": ""}) == load({}, {})


def test_sample_file_is_the_tables_and_says_its_defaults() -> None:
    sample = (REPOSITORY / "etc" / "empd.toml").read_text()
    assert sample == sample_toml(), "write it anew: make samples"
    lines = [line for line in sample.splitlines() if line.startswith("#") and not line.startswith(("# ", "#\n"))]
    switched_on = tomllib.loads("\n".join(line[1:] for line in lines if len(line) > 1))
    assert list(switched_on) == [name for name in SETTINGS if name != "config"]
    for name, value in switched_on.items():
        if SETTINGS[name].default is not None:
            assert getattr(load({name: value}, {}), name) == SETTINGS[name].default
        else:
            assert value.startswith("/")


def test_schema_has_every_setting_and_its_limits() -> None:
    schema = settings_schema()
    assert set(schema["properties"]) == set(SETTINGS) - {"config"}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["max_crashes"]["minimum"] == 1
    assert schema["properties"]["queue_bytes_max"]["anyOf"][1]["type"] == "string"
    assert all(entry["description"] for entry in schema["properties"].values())
    msgspec.json.encode(schema)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_sizes_read_back_as_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("64k", 64_000),
        ("1_000", 1000),
        ("0", 0),
        (" 2 tib ", 2 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ValueError as error:
        assert "is not a size" in str(error)


@given(st.sampled_from(list(SETTINGS)), st.text(max_size=40))
def test_any_text_for_any_setting_is_taken_or_refused(name: str, text: str) -> None:
    try:
        assert isinstance(load({name: text}, {}), Settings)
    except ConfigError as error:
        assert all(problem for problem in error.problems)


def pages() -> list[Path]:
    return [REPOSITORY / "README.md", REPOSITORY / "systemd" / "README.md", *(REPOSITORY / "systemd").glob("*.service")]


@pytest.mark.parametrize("page", pages(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_pages_name_only_variables_that_exist(page: Path) -> None:
    known = {row.environment for row in SETTINGS.values()}
    assert set(re.findall(r"\bEMPD_[A-Z_]+\b", page.read_text())) <= known


def test_the_process_own_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPD_MAX_CRASHES", "9")
    assert load().max_crashes == 9


def test_a_problem_in_a_weaker_place_is_named_even_when_a_stronger_one_is_right(tmp_path: Path) -> None:
    path = written(tmp_path, "retries = 'lots'")
    (problem,) = problems_of({"config": path, "retries": 1})
    assert problem.startswith(f"{path}: retries: ")


def test_a_client_finds_its_daemon_whatever_else_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, f"retries = 'lots'\nruntime_dir = '{tmp_path}/run'\nlog_lvel = 'info'")
    found = load_places({"EMPD_CONFIG": str(path), "EMPD_GPUS": "many", "EMPD_NONSENSE": "1"})
    assert found.settings.clients_endpoint == f"ipc://{tmp_path}/run/empd.sock"
    assert found.sources["runtime_dir"] == str(path)
    for lost in ("runtime_dir = 7", "endpoint = 'nowhere'", "= not TOML", None):
        there = written(tmp_path, lost) if lost else tmp_path / "none.toml"
        with pytest.raises(ConfigError):
            load_places({"EMPD_CONFIG": str(there)})


@pytest.mark.parametrize("wrong", ["gpu.example.com:8443", "https://gpu.example.com", "*", "", "a b", "-x"])
def test_hosts_are_names(tmp_path: Path, wrong: str) -> None:
    assert load({"config": written(tmp_path, 'http_hosts = ["gpu.example.com", "box"]')}, {}).http_hosts[1] == "box"
    assert load({}, {"EMPD_HTTP_HOSTS": "gpu.example.com,box"}).http_hosts == ("gpu.example.com", "box")
    (problem,) = problems_of({"config": written(tmp_path, f"http_hosts = [{wrong!r}]")})
    assert "http_hosts" in problem
    assert "host names" in problem
