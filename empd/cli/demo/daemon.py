"""The demo's own daemon, in a directory of its own: started, killed in parts, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from empd.client import Client
from empd.errors import EmpdError, NotRunning
from empd.loading import load
from empd.settings import SETTINGS

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05

MAPPING: dict[str, Any] = {
    "workers": {
        "gpu": {"services": ["simulation"], "is_gpu_bound": True},
        "studio": {"services": ["thumbnail", "checksum"], "instances": 2},
    },
    "services": {
        "simulation": {"connector": "SimulationConnector", "api_config": {"duration_s": 0.008, "jitter": 0.5}},
        "thumbnail": {
            "connector": "PythonConnector",
            "api_config": {"callable": "empd.cli.demo.services:thumbnail"},
        },
        "checksum": {"connector": "PythonConnector", "api_config": {"callable": "empd.cli.demo.services:checksum"}},
    },
}


class Daemon:
    """`empd run` with two virtual GPUs. `close` stops it and removes its directory, unless `keep` was called."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="empd-demo-"))
        self.log = self.directory / "daemon.log"
        (self.directory / "empd.toml").touch()
        (self.directory / "mapping.json").write_text(json.dumps(MAPPING, indent=2))
        self.endpoint = f"ipc://{self.directory}/run/empd.sock"
        self._flags = {
            "config": self.directory / "empd.toml",
            "mapping": self.directory / "mapping.json",
            "state_dir": self.directory / "state",
            "runtime_dir": self.directory / "run",
            "http": "127.0.0.1:0",
            "gpus": "virtual:2",
        }
        self._kept = False
        # The operator's own settings must not reach this daemon.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMPD_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "empd",
                    "run",
                    *(f"{SETTINGS[name].flag}={value}" for name, value in self._flags.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its daemon
            )

    def connect(self) -> Client:
        """A client, once workers take jobs. Raises NotRunning with the log's last lines when that does not come."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        pause = threading.Event()
        client: Client | None = None
        try:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    client = client or Client(self.endpoint, connect_timeout_s=0.5, name="empd demo")
                    if self.page and _all_up(client):
                        return client
                except NotRunning:
                    client = None  # not there yet, or gone while it was asked
                pause.wait(POLL_S)
        except BaseException:  # whatever it is, it is raised again; the client must not stay
            if client is not None:
                client.close(0.0)
            raise
        if client is not None:
            client.close(0.0)
        tail = " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise NotRunning(f"the demo's daemon did not become ready; {self.log} ends: {tail}")

    @property
    def page(self) -> str:
        """The page's address; empty until it is served."""
        try:
            return f"http://{(self.directory / 'run/http').read_text().strip()}/"
        except OSError:
            return ""

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    def kill(self, pid: int) -> int:
        """SIGKILL to one of this daemon's children; when, in Unix nanoseconds. Refuses any other process."""
        if _parent(pid) != self._process.pid:
            raise EmpdError(f"process {pid} is not a child of the demo's daemon; it is left alone")
        os.kill(pid, signal.SIGKILL)
        return time.time_ns()

    def keep(self) -> None:
        """Leaves the daemon running after `close`."""
        self._kept = True

    def close(self) -> None:
        """Stops the daemon as an operator would, and removes what it left."""
        if self._kept:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Asked before the files are gone that the settings name.
        volatile_dir = load(self._flags, {}).volatile_dir
        for directory in (self.directory, volatile_dir):
            shutil.rmtree(directory, ignore_errors=True)


def _parent(pid: int) -> int:
    """The parent's pid, from /proc; 0 when there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _all_up(client: Client) -> bool:
    status = client.status()
    services = status["services"]
    return not status["problems"] and all(services[name]["slots"] >= 2 for name in MAPPING["services"])
