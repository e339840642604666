"""Daemons with third-party servers of their own, and what the tests ask of them."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from empd.memory.board import Board, Gauges
from tests.box import OPERATORS, Box, wait_until

SERVER = [sys.executable, str(OPERATORS / "server_double.py"), "{port}"]
QUICK = {"health_interval_s": 0.2, "hang_s": 30, "stop_s": 2}


_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> int:
    """The first of `count` ports side by side that nobody listens on, below those that the kernel gives to outgoing
    connections: a server that is killed must find its port again, and somebody else's connection would keep it."""
    first_local = int(_LOCAL_PORTS.read_text().split()[0])
    for _ in range(200):
        base_port = random.randrange(10_000, first_local - count)
        if all(_is_free(base_port + i) for i in range(count)):
            return base_port
    raise AssertionError(f"no {count} free ports side by side")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def internal(base_port: int, *, gpu: bool = False, command: list[str] | None = None, **server: Any) -> dict[str, Any]:
    """An internal service's entry."""
    entry = {"command": command or SERVER, "base_port": base_port, "health_url": "http://127.0.0.1:{port}/health"}
    return {
        "connector": "DoubleConnector",
        "type": "internal",
        "is_gpu_bound": gpu,
        "server": {**entry, **QUICK, **server},
    }


def mapping_with(services: dict[str, Any], **worker: Any) -> dict[str, Any]:
    """One worker type for each service."""
    workers = {name: {"services": [name], "is_gpu_bound": entry["is_gpu_bound"], **worker}
               for name, entry in services.items()}  # fmt: skip
    return {
        "workers": workers,
        "connectors": {"DoubleConnector": {"path": "double_connector:DoubleConnector"}},
        "services": services,
    }


class ServerBox(Box):
    """A daemon, and its servers as its status file shows them."""

    def server(self, name: str) -> dict[str, Any]:
        """One server's entry; its `server_pid` is the third-party process."""
        children = json.loads((self.runtime_dir / "supervisor.json").read_text())["children"]
        return next(child for child in children if child["name"] == name)

    def wait_server(self, name: str, state: str = "ready", *, other_than: int = 0) -> dict[str, Any]:
        """Waits for a state, perhaps of another generation than that one."""

        def found() -> dict[str, Any]:
            server = self.server(name)
            fits = server["state"] == state and server["generation"] != other_than
            return server if fits and (state != "ready" or server["server_pid"]) else {}

        return wait_until(found, f"{name} to be {state}\n{self.log()[-3000:]}")

    def do(self, service: str, **payload: Any) -> Any:
        """A job's result."""
        with self.client() as client:
            return client.submit(service, payload).result(30)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body of an HTTP answer."""
        try:
            with urllib.request.urlopen(self.http() + path, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def output(self, name: str) -> str:
        """What the server wrote, with the daemon's notes."""
        path = self.state_dir / "servers" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def write_gauges(self, slot: int, gauges: Gauges) -> None:
        """Plays telemetry for one slot of the daemon's board."""
        assert self.process is not None
        folder = Path(f"/proc/{self.process.pid}/fd")
        link = next(each for each in folder.iterdir() if "empd-board" in os.readlink(each))
        fd = os.open(link, os.O_RDWR)
        try:
            board = Board.attach(fd)
            board.writer(slot, Gauges).write(gauges)
            board.close()
        finally:
            os.close(fd)
