"""sd_notify, against a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from supervisor_daemon import Daemon

from empd.supervisor import notify
from tests.box import wait_until


class Listener:
    """What systemd would see."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.came: list[str] = []

    def lines(self) -> list[str]:
        """All lines so far, oldest first."""
        while True:
            try:
                self.came += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.came

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), line)

    def close(self) -> None:
        self.socket.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_each_notice_is_one_datagram(folder: Path, abstract: bool):
    name = f"empd-test-{os.getpid()}"
    address = "\0" + name if abstract else str(folder / "notify")
    listener = Listener(address)
    found = notify.from_environment({"NOTIFY_SOCKET": "@" + name if abstract else address, "WATCHDOG_USEC": "3000000"})
    assert found.watchdog_s == 1.5
    found.ready("all is well")
    found.status("all is well")  # said already
    found.status("one worker is away")
    found.watchdog()
    found.reloading("reading")
    found.stopping("draining")
    lines = listener.lines()
    assert lines[:4] == ["READY=1", "STATUS=all is well", "STATUS=one worker is away", "WATCHDOG=1"]
    assert lines[4] == "RELOADING=1"
    assert int(lines[5].removeprefix("MONOTONIC_USEC=")) > 0
    assert lines[6:] == ["STATUS=reading", "STOPPING=1", "STATUS=draining"]
    listener.close()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": ""}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, None),
        ({"NOTIFY_SOCKET": "/nowhere"}, None),
        ({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "2000000"}, 1.0),
        ({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_without_a_listener_everything_is_silently_possible(environment: dict[str, str], watchdog_s: float | None):
    found = notify.from_environment(environment)
    assert found.watchdog_s == watchdog_s
    for say in (found.ready, found.status, found.reloading, found.stopping):
        say("anything")
    found.watchdog()
    assert isinstance(found, notify.Off) == (not environment.get("NOTIFY_SOCKET", "").startswith("/"))


def test_the_daemon_tells_systemd_its_whole_life(daemon: Daemon):
    listener = Listener(str(daemon.folder / "notify"))
    daemon.environment |= {"NOTIFY_SOCKET": str(daemon.folder / "notify"), "WATCHDOG_USEC": "200000"}
    daemon.environment.pop("WATCHDOG_PID", None)
    daemon.start()
    listener.wait_for("READY=1")
    wait_until(lambda: listener.lines().count("WATCHDOG=1") >= 3, "the watchdog to be fed")
    listener.wait_for("STATUS=2 of 2 workers ready")

    os.kill(daemon.child("w-0")["pid"], signal.SIGKILL)
    listener.wait_for("STATUS=1 of 2 workers ready")

    daemon.send(signal.SIGHUP)
    wait_until(lambda: listener.lines().count("READY=1") >= 2, "READY after the reload")
    assert listener.lines().index("RELOADING=1") > listener.lines().index("READY=1")

    daemon.configure(mapping={})
    daemon.send(signal.SIGHUP)
    wait_until(lambda: any("reload refused" in line for line in listener.lines()), "the refusal")
    assert listener.lines().count("READY=1") == 3

    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    assert "STOPPING=1" in listener.lines()
    listener.close()


def test_ready_waits_for_broker_and_web(daemon: Daemon):
    listener = Listener(str(daemon.folder / "notify"))
    daemon.environment["NOTIFY_SOCKET"] = str(daemon.folder / "notify")
    daemon.behave(broker="never_ready", w_0="never_ready")
    daemon.start(ready=False, table={"broker": {"start_s": 2.0}})
    listener.wait_for("STATUS=1 of 2 workers ready, broker starting")
    # A reload before the first READY does not say it either.
    daemon.configure(mapping={})
    daemon.send(signal.SIGHUP)
    wait_until(lambda: "reload: " in daemon.stderr, "the refusal")
    assert "READY=1" not in listener.lines()
    daemon.behave(w_0="never_ready")
    # The broker that never came up climbs the ladder; its successor serves.
    listener.wait_for("READY=1")
    assert daemon.child("w-0")["state"] == "starting"
    listener.close()
