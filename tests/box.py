"""A whole daemon as its users run it: `empd run` as a process, with its own directories and free ports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from empd import Client
from empd.errors import EmpdError
from empd.settings import Settings

WAIT_S = 60.0
OPERATORS = Path(__file__).parent / "operators"
"""Modules as an operator would write them; the daemons of the tests find them."""

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, limit_s: float = WAIT_S) -> T:
    """Polls until the condition gives something true, and returns that."""
    deadline_s = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline_s, f"waited {limit_s:g} s in vain for {what}"
        time.sleep(0.005)


def service(connector: str = "SimulationConnector", *, worker: dict[str, Any] | None = None, **entry: Any) -> Any:
    """(worker, service) entries for `mapping_of`."""
    return worker or {}, {"connector": connector, **entry}


def mapping_of(**services: Any) -> dict[str, Any]:
    """One worker type of the same name for each service."""
    workers = {name: {"services": [name], "instances": 1, **worker} for name, (worker, _) in services.items()}
    return {"workers": workers, "services": {name: entry for name, (_, entry) in services.items()}}


def noop_mapping(instances: int = 2, slots: int = 64) -> dict[str, Any]:
    """A service that does nothing, at once."""
    worker = {"instances": instances, "max_concurrent_jobs": slots}
    return mapping_of(noop=service(worker=worker, api_config={"duration_s": 0, "echo": True}))


class Box:
    """One daemon. Ends by drain; `kill` is for what a test wants to see survive."""

    def __init__(self, mapping: dict[str, Any] | None = None, *, home: Path | None = None, **settings: Any) -> None:
        self._temporary = None if home else tempfile.mkdtemp(prefix="empd-", dir="/tmp")
        self.home = home or Path(self._temporary or "")
        self.state_dir = self.home / "state"
        self.runtime_dir = self.home / "run"
        self.settings = {"gpus": "none", "http": "127.0.0.1:0", "telemetry_interval_s": 0, "drain_s": 5, **settings}
        self.log_path = self.home / "log"
        self.mapping_path = self.home / "mapping.json"
        self.mapping_path.write_text(json.dumps(mapping or noop_mapping()))
        self.process: subprocess.Popen[bytes] | None = None

    # --- its life ---

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, *, wait: bool = True) -> None:
        """Runs `empd run`; returns when it is ready."""
        arguments = [sys.executable, "-m", "empd", "run", "--mapping", str(self.mapping_path)]
        arguments += ["--state-dir", str(self.state_dir), "--runtime-dir", str(self.runtime_dir)]
        for name, value in {"python_path": str(OPERATORS), **self.settings}.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("EMPD_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environ, start_new_session=True)
        if wait:
            wait_until(self.is_ready, f"the daemon to be ready\n{self.log()[-3000:]}")

    def is_ready(self) -> bool:
        """The daemon answers, and every configured worker is connected."""
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log()[-3000:]}"
        if not (self.runtime_dir / "empd.sock").exists() or not (self.runtime_dir / "http").exists():
            return False
        with contextlib.suppress(EmpdError), self.client(connect_timeout_s=1) as client:
            status = client.status()
            return bool(status["workers"]) and not status["problems"]
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks it to stop; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """Stops it, if it still runs, and removes its directory."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        if self._temporary:
            # A daemon that was killed leaves its volatile blobs, as it must: a successor would want them.
            for path in (
                self._temporary,
                Settings(state_dir=self.state_dir, runtime_dir=self.runtime_dir).volatile_dir,
            ):
                shutil.rmtree(path, ignore_errors=True)

    def kill(self) -> None:
        """kill -9 of the supervisor, which takes everything with it."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(WAIT_S)
        wait_until(lambda: not any(is_alive(child.pid) for child in children), "all children to die with it")

    def restart(self) -> None:
        """The same daemon again, on the same state."""
        self.start()

    # --- its parts ---

    def client(self, **options: Any) -> Client:
        """A client of this daemon."""
        return Client(f"ipc://{self.runtime_dir}/empd.sock", **options)

    def http(self) -> str:
        """The base URL of the API."""
        address = wait_until(lambda: (self.runtime_dir / "http").read_text().strip(), "the http file")
        return f"http://{address}"

    def children(self) -> dict[str, int]:
        """Name → pid of the supervisor's children, by the daemon's own account."""
        with contextlib.suppress(OSError, ValueError):
            table = json.loads((self.runtime_dir / "supervisor.json").read_text())
            return {child["name"]: child["pid"] for child in table["children"] if child.get("pid")}
        return {}

    def pid(self, name: str) -> int:
        """The pid of a living child."""

        def living() -> int:
            pid = self.children().get(name, 0)
            return pid if pid and is_alive(pid) else 0

        return wait_until(living, f"a living {name}")

    def signal(self, name: str, number: int = signal.SIGKILL) -> int:
        """Sends a signal to a child; returns the pid that got it."""
        pid = self.pid(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def log(self) -> str:
        """What the daemon wrote so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def is_alive(pid: int) -> bool:
    """The process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
