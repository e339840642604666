"""The systemd files, checked by systemd's own tools."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from empd.loading import load
from empd.settings import Settings

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = UNITS / "empd.service"
EXPOSURE_MAX = 3.0


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """The [Service] section: key → values in order."""
    parser = configparser.RawConfigParser(strict=False, dict_type=_Repeating, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(SERVICE.read_text())
    return {key: value.split("\n") for key, value in parser.items("Service")}


class _Repeating(dict[str, object]):
    """Keeps all values of a repeated key, as unit files mean it."""

    def __setitem__(self, key: str, value: object) -> None:
        if isinstance(value, list) and isinstance(self.get(key), list):
            self[key].extend(value)  # type: ignore[attr-defined]
        else:
            super().__setitem__(key, value)


@pytest.fixture
def service_alone(tmp_path: Path) -> Path:
    """The unit in a directory of its own, so that nothing beside it is looked at."""
    return Path(shutil.copy(SERVICE, tmp_path))


def test_verify_has_nothing_to_say(service_alone: Path) -> None:
    result = run("systemd-analyze", "verify", service_alone)
    assert result.stderr == ""
    assert result.returncode == 0


def test_verify_would_have_spoken(service_alone: Path) -> None:
    service_alone.write_text(service_alone.read_text().replace("[Install]", "Typo=yes\n[Install]"))
    assert "Typo" in run("systemd-analyze", "verify", service_alone).stderr


def exposure(service: Path) -> float:
    result = run("systemd-analyze", "security", "--offline=true", "--no-pager", service)
    found = re.search(r"Overall exposure level for empd\.service: ([0-9.]+)", result.stdout)
    assert found is not None, result.stdout + result.stderr
    return float(found[1])


def test_exposure_is_low(service_alone: Path) -> None:
    assert exposure(service_alone) < EXPOSURE_MAX
    service_alone.write_text(service_alone.read_text().replace("CapabilityBoundingSet=", "#"))
    assert exposure(service_alone) > EXPOSURE_MAX


def test_gpus_and_shared_memory_stay_reachable(unit: dict[str, list[str]]) -> None:
    assert unit["DevicePolicy"] == ["closed"]
    assert any(value.startswith("char-nvidia*") for value in unit["DeviceAllow"])
    for forbidden in (
        "PrivateDevices",
        "MemoryDenyWriteExecute",
        "PrivateNetwork",
        "ProtectControlGroups",
        "RemoveIPC",
    ):
        assert unit.get(forbidden, ["no"]) == ["no"], forbidden


def test_it_lives_and_ends_as_designed(unit: dict[str, list[str]]) -> None:
    expected = {
        "Type": "notify",
        "Delegate": "yes",
        "KillMode": "mixed",
        "OOMPolicy": "continue",
        "RuntimeDirectory": "empd",
        "RuntimeDirectoryMode": "0750",
        "RuntimeDirectoryPreserve": "yes",
        "StateDirectory": "empd",
        "Restart": "on-failure",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "NotifyAccess": "main",
    }
    assert {key: unit[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert unit["ExecStart"][0].endswith("empd run")
    assert int(unit["WatchdogSec"][0]) > 0


def test_stop_time_is_above_drain_and_ladder(unit: dict[str, list[str]]) -> None:
    settings: Settings = load({}, {"RUNTIME_DIRECTORY": "/run/empd", "STATE_DIRECTORY": "/var/lib/empd"})
    ladder_s = settings.drain_s + settings.cancel_grace_s + settings.term_grace_s
    assert int(unit["TimeoutStopSec"][0]) >= ladder_s + 10


def test_daemon_under_the_unit_uses_its_directories() -> None:
    settings = load({}, {"RUNTIME_DIRECTORY": "/run/empd", "STATE_DIRECTORY": "/var/lib/empd", "HOME": "/root"})
    assert settings.clients_endpoint == "ipc:///run/empd/empd.sock"
    assert settings.journal_path == Path("/var/lib/empd/journal.db")


def test_user_and_directories_are_made(tmp_path: Path) -> None:
    """The real tools on an empty root: the user, its groups, and the directories with their modes."""
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", UNITS / "sysusers.d" / "empd.conf")
    assert made.returncode == 0, made.stderr
    assert re.search(
        r"^empd:x:\d+:\d+:empd job daemon:/var/lib/empd:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE
    )
    groups = (tmp_path / "etc/group").read_text()
    for group in ("video", "render"):
        assert re.search(rf"^{group}:x:\d+:empd$", groups, re.MULTILINE)
    made = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", UNITS / "tmpfiles.d" / "empd.conf")
    if os.geteuid() != 0:  # the directories then cannot be given to their owner, all else was read
        assert all("Operation not permitted" in line for line in made.stderr.splitlines())
        return
    assert made.returncode == 0, made.stderr
    for directory in ("etc/empd", "var/lib/empd"):
        assert (tmp_path / directory).stat().st_mode & 0o777 == 0o750


def test_guide_names_every_file_to_install() -> None:
    guide = (UNITS / "README.md").read_text()
    for path in UNITS.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert str(path.relative_to(UNITS.parent)) in guide
