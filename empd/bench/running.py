"""A daemon that runs, whoever started it: its clients, its processes, what they use."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from empd.bench import processes
from empd.client import Client
from empd.errors import EmpdError

LIMIT_S = 60.0
_LOOK_INTERVAL_S = 0.002

T = TypeVar("T")


class BenchError(EmpdError):
    """A scenario could not be measured."""


class Child(NamedTuple):
    """One process of the daemon, by the supervisor's account."""

    name: str
    kind: str
    pid: int
    generation: int
    state: str


def wait_until(condition: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """Looks every 2 ms until the condition gives something true, and returns that. Raises BenchError at the limit."""
    deadline_s = time.monotonic() + limit_s
    pause = threading.Event()
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise BenchError(f"waited {limit_s:g} s in vain for {what}")
        pause.wait(_LOOK_INTERVAL_S)
    return found


def rest(seconds: float) -> None:
    """Lets time pass."""
    until_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until_s, "time to pass", seconds + LIMIT_S)


class Running:
    """A daemon on this host by its `ipc://` endpoint. `service` is the one that does nothing there."""

    def __init__(self, endpoint: str, service: str = "noop") -> None:
        self.endpoint = endpoint
        self.service = service
        self.runtime_dir = Path(endpoint.removeprefix("ipc://")).parent

    def client(self, **options: Any) -> Client:
        """A client, as any user makes one."""
        return Client(self.endpoint, **options)

    @property
    def http_address(self) -> str:
        """HOST:PORT of its API."""
        return (self.runtime_dir / "http").read_text().strip()

    def picture(self) -> dict[str, Any]:
        """What `/v1/status` says. Raises BenchError where nobody answers."""
        connection = http.client.HTTPConnection(self.http_address, timeout=LIMIT_S)
        try:
            connection.request("GET", "/v1/status")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BenchError(f"no web process answers at http://{self.http_address}: {error}") from None
        finally:
            connection.close()
        return found

    def _supervisor(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runtime_dir / "supervisor.json").read_text())
        return found

    def children(self) -> list[Child]:
        """The processes under the supervisor."""
        fields = ("name", "kind", "pid", "generation", "state")
        return [Child(*(child[field] for field in fields)) for child in self._supervisor()["children"]]

    def child(self, name: str) -> Child:
        """The living child of this name."""

        def living() -> Child | None:
            found = [child for child in self.children() if child.name == name and child.pid]
            return found[0] if found and processes.exists(found[0].pid) else None

        return wait_until(living, f"a living {name}")  # type: ignore[return-value]

    def pids(self) -> dict[str, list[int]]:
        """All its processes by kind: supervisor, broker, web, worker, and what the supervisor's table does not name."""
        supervisor: int = self._supervisor()["pid"]
        found = {"supervisor": [supervisor]}
        for child in self.children():
            if child.pid:
                found.setdefault(child.kind, []).append(child.pid)
        named = {pid for pids in found.values() for pid in pids}
        found["sentinel"] = [pid for pid in processes.descendants(supervisor) if pid not in named]
        return found

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by kind of process, and by this one (`client`)."""
        used = {kind: sum(map(processes.cpu_s, pids)) for kind, pids in self.pids().items()}
        return {**used, "client": processes.cpu_s(os.getpid())}

    def pss_bytes(self) -> dict[str, float]:
        """Memory by kind of process, shared pages counted once in all."""
        return {kind: sum(processes.memory(pid).pss for pid in pids) for kind, pids in self.pids().items()}


def per_job_us(before: dict[str, float], after: dict[str, float], jobs: int) -> dict[str, float]:
    """CPU between two looks, in µs for each job, by kind of process."""
    return {f"{kind}_cpu_us_per_job": (used - before.get(kind, 0.0)) * 1e6 / jobs for kind, used in after.items()}
