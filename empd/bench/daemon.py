"""A daemon of the bench's own: `empd run` as shipped, in directories that go when it goes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from empd.bench import processes
from empd.client import Client
from empd.errors import EmpdError
from empd.prctl import die_with_parent

PLACE = "/var/tmp"
"""Where state lies unless somebody says otherwise: on a disk, where /tmp may be memory."""

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_LOOK_INTERVAL_S = 0.002
_LOG_TAIL_CHARS = 2000

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


def wait_until(condition: Callable[[], T], what: str, limit_s: float = READY_TIMEOUT_S) -> T:
    """Looks every 2 ms until the condition gives something true, and returns that. Raises BenchError at the limit."""
    deadline_s = time.monotonic() + limit_s
    pause = threading.Event()
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise BenchError(f"waited {limit_s:g} s in vain for {what}")
        pause.wait(_LOOK_INTERVAL_S)
    return found


def noop_mapping(workers: int = 2, credit: int = 512) -> dict[str, Any]:
    """A service `noop` that does nothing, at once, without a GPU."""
    return mapping_of({"noop": {"api_config": {"duration_s": 0}}}, instances=workers, max_concurrent_jobs=credit)


def mapping_of(services: dict[str, dict[str, Any]], **worker: Any) -> dict[str, Any]:
    """Simulated services, each with a worker type of its own of the same name."""
    return {
        "workers": {name: {"services": [name], "is_gpu_bound": False, **worker} for name in services},
        "services": {name: {"connector": "SimulationConnector", **entry} for name, entry in services.items()},
    }


class Daemon:
    """One daemon from `with` to the block's end. Settings are as shipped, but for directories, port and GPUs."""

    def __init__(self, mapping: dict[str, Any], place: str = PLACE, **settings: Any) -> None:
        # Paths of unix sockets are short, so the runtime directory is not beside the state.
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="empd-bench-", dir="/tmp"))
        self.state_dir = Path(tempfile.mkdtemp(prefix="empd-bench-", dir=place))
        self.settings = {"gpus": "none", "http": "127.0.0.1:0", **settings}
        self._log_path = self.state_dir / "daemon.log"
        self._mapping_path = self.state_dir / "mapping.json"
        self._mapping_path.write_text(json.dumps(mapping))
        self._workers = sum(worker.get("instances", 1) for worker in mapping["workers"].values())
        self._process: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # whatever it was, Ctrl-C included, no process may stay behind
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Runs it until every worker is connected; `ready_s` is the time to its READY (sd_notify)."""
        begun_s = time.monotonic()
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
            path = self.state_dir / "notify"
            path.unlink(missing_ok=True)
            notify.bind(str(path))
            self._process = self._spawn(str(path))
            self._await_ready(notify, begun_s + READY_TIMEOUT_S)
            self.ready_s = time.monotonic() - begun_s
        wait_until(self._serves, f"all workers\n{self._log_tail()}")

    def _spawn(self, notify_path: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "empd", "run", "--mapping", str(self._mapping_path)]
        arguments += ["--state-dir", str(self.state_dir / "state"), "--runtime-dir", str(self.runtime_dir / "run")]
        for name, value in self.settings.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMPD_")}
        environment["NOTIFY_SOCKET"] = notify_path
        with self._log_path.open("ab") as log:
            return subprocess.Popen(
                arguments,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                # However the bench ends; it has no thread of its own yet when it starts a daemon.
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )

    def _await_ready(self, notify: socket.socket, deadline_s: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline_s and self._process.poll() is None:
            if select.select([notify], [], [], 0.1)[0] and b"READY=1" in notify.recv(4096).split(b"\n"):
                return
        raise BenchError(f"the daemon did not become ready:\n{self._log_tail()}")

    def _serves(self) -> bool:
        with contextlib.suppress(EmpdError), self.client(connect_timeout_s=1) as client:
            status = client.status()
            connected = sum(worker["connected"] and worker["slots"] > 0 for worker in status["workers"])
            return bool(connected == self._workers and not status["problems"])
        return False

    def _log_tail(self) -> str:
        return self._log_path.read_text(errors="replace")[-_LOG_TAIL_CHARS:] if self._log_path.exists() else ""

    # --- talking to it ---

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"ipc://{self.runtime_dir}/run/empd.sock"

    def client(self, **options: Any) -> Client:
        """A client, as any user makes one."""
        return Client(self.endpoint, **options)

    def children(self) -> list[Child]:
        """The processes under the supervisor."""
        status = self.runtime_dir / "run" / "supervisor.json"
        fields = ("name", "kind", "pid", "generation", "state")
        return [Child(*(child[field] for field in fields)) for child in json.loads(status.read_text())["children"]]

    def child(self, name: str) -> Child:
        """The living child of this name."""

        def living() -> Child | None:
            found = [child for child in self.children() if child.name == name and child.pid]
            return found[0] if found and processes.exists(found[0].pid) else None

        return wait_until(living, f"a living {name}")  # type: ignore[return-value]

    def pids(self) -> dict[str, list[int]]:
        """All its processes by kind: supervisor, broker, web, worker, and what the supervisor's table does not name."""
        assert self._process is not None
        found = {"supervisor": [self._process.pid]}
        for child in self.children():
            if child.pid:
                found.setdefault(child.kind, []).append(child.pid)
        named = {pid for pids in found.values() for pid in pids}
        found["sentinel"] = [pid for pid in processes.descendants(self._process.pid) if pid not in named]
        return found

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by kind of process, and by this one (`client`)."""
        used = {kind: sum(map(processes.cpu_s, pids)) for kind, pids in self.pids().items()}
        return {**used, "client": processes.cpu_s(os.getpid())}

    # --- its end ---

    def close(self) -> None:
        """Stops it, in the hard way when it does not stop, and removes its directories."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its children die with it (PDEATHSIG)
                process.wait()
        for directory in (self.runtime_dir, self.state_dir):
            shutil.rmtree(directory, ignore_errors=True)
