"""Where a client looks for its daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from empd.client import endpoint
from empd.client.endpoint import find_endpoint, find_keys
from empd.errors import ConfigError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's runtime directory and the system's, both empty."""
    for name in ("EMPD_ENDPOINT", "EMPD_RUNTIME_DIR", "RUNTIME_DIRECTORY", "EMPD_CURVE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(endpoint, "SYSTEM_SOCKET", tmp_path / "system" / "empd.sock")
    for name in ("user/empd", "system"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_the_system_daemon_is_found_when_the_user_runs_none(places: Path) -> None:
    own, system = places / "user/empd/empd.sock", places / "system/empd.sock"
    assert find_endpoint() == f"ipc://{own}"  # neither is there: the error names the user's
    system.touch()
    assert find_endpoint() == f"ipc://{system}"
    own.touch()
    assert find_endpoint() == f"ipc://{own}"


def test_who_names_a_place_gets_that_place(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "system/empd.sock").touch()
    assert find_endpoint("ipc:///x/y.sock") == "ipc:///x/y.sock"
    monkeypatch.setenv("EMPD_RUNTIME_DIR", str(places / "mine"))
    assert find_endpoint() == f"ipc://{places / 'mine'}/empd.sock"
    monkeypatch.setenv("EMPD_ENDPOINT", "ipc:///a/b.sock")
    assert find_endpoint() == "ipc:///a/b.sock"
    with pytest.raises(ConfigError, match="'localhost:8780' is not an endpoint; accepted: ipc://PATH"):
        find_endpoint("localhost:8780")


def test_a_tcp_endpoint_needs_keys(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_keys("ipc:///x.sock") is None
    with pytest.raises(ConfigError, match="CURVE keys only; set curve_dir"):
        find_keys("tcp://127.0.0.1:1")
    monkeypatch.setenv("EMPD_CURVE_DIR", str(places))
    assert find_keys("tcp://127.0.0.1:1") == places
    assert find_keys("tcp://127.0.0.1:1", "/given") == Path("/given")
