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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from empd.bench import processes
from empd.bench.running import LIMIT_S, BenchError, Running, wait_until
from empd.errors import EmpdError
from empd.prctl import die_with_parent
from empd.settings import Settings

PLACE = "/var/tmp"
"""Where state lies unless somebody says otherwise: on a disk, where /tmp may be memory."""

STOP_TIMEOUT_S = 30.0
_LOG_TAIL_CHARS = 2000


def as_installed() -> dict[str, str]:
    """The environment without settings of empd's, and such that Python keeps what it compiled, as it was when empd was
    installed: to compile every module at every start takes longer than all the rest of it."""
    left_out = ("EMPD_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


class Where(NamedTuple):
    """What a scenario measures: daemons of its own with their state under `place`, or the one that is `running`."""

    place: str = PLACE
    running: Running | None = None

    @contextlib.contextmanager
    def daemon(self, mapping: dict[str, Any], **settings: Any) -> Iterator[Running]:
        """The running one as it is, or one of its own with this mapping and these settings."""
        if self.running is not None:
            yield self.running
        else:
            with Daemon(mapping, self.place, **settings) as own:
                yield own


def noop_mapping(workers: int = 2, credit: int = 512) -> dict[str, Any]:
    """A service `noop` that does nothing, at once, without a GPU."""
    return mapping_of({"noop": {"api_config": {"duration_s": 0}}}, instances=workers, max_concurrent_jobs=credit)


def mapping_of(services: dict[str, dict[str, Any]], **worker: Any) -> dict[str, Any]:
    """Simulated services, each with a worker type of its own of the same name."""
    return {
        "workers": {name: {"services": [name], "is_gpu_bound": False, **worker} for name in services},
        "services": {name: {"connector": "SimulationConnector", **entry} for name, entry in services.items()},
    }


class Daemon(Running):
    """One daemon from `with` to the block's end. Settings are as shipped, but for directories, port and GPUs."""

    def __init__(self, mapping: dict[str, Any], place: str = PLACE, **settings: Any) -> None:
        # Paths of unix sockets are short, so the runtime directory is not beside the state.
        self._directory = Path(tempfile.mkdtemp(prefix="empd-bench-", dir="/tmp"))
        super().__init__(f"ipc://{self._directory}/run/empd.sock")
        self.state_dir = Path(tempfile.mkdtemp(prefix="empd-bench-", dir=place))
        self.settings = {"gpus": "none", "http": "127.0.0.1:0", **settings}
        self._log_path = self.state_dir / "daemon.log"
        self._mapping_path = self.state_dir / "mapping.json"
        self._mapping_path.write_text(json.dumps(mapping))
        self._workers = sum(worker.get("instances", 1) for worker in mapping["workers"].values())
        self._process: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0

    @property
    def volatile_dir(self) -> Path:
        """Where its volatile blobs lie."""
        return Settings(state_dir=self.state_dir, runtime_dir=self.runtime_dir).volatile_dir

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
            self._await_ready(notify, begun_s + LIMIT_S)
            self.ready_s = time.monotonic() - begun_s
        wait_until(self._serves, f"all workers\n{self._log_tail()}")

    def _spawn(self, notify_path: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "empd", "run", "--mapping", str(self._mapping_path)]
        arguments += ["--state-dir", str(self.state_dir / "state"), "--runtime-dir", str(self.runtime_dir)]
        for name, value in self.settings.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        environment = {**as_installed(), "NOTIFY_SOCKET": notify_path}
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

    # --- its end ---

    def kill_box(self) -> None:
        """Ends every process at once, as a power cut does, and takes what a reboot takes: the runtime directory."""
        pids = [pid for found in self.pids().values() for pid in found]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reap(pids)
        shutil.rmtree(self.runtime_dir)

    def kill_supervisor(self) -> None:
        """kill -9 of the supervisor; returns when all its processes have gone, as they must."""
        pids = [pid for found in self.pids().values() for pid in found]
        assert self._process is not None
        self._process.kill()
        self._reap(pids)

    def _reap(self, pids: list[int]) -> None:
        assert self._process is not None
        self._process.wait(STOP_TIMEOUT_S)
        wait_until(lambda: not any(map(processes.exists, pids)), "every process to end", STOP_TIMEOUT_S)

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
        # A daemon that was killed leaves its volatile blobs, as it must: a successor would want them.
        for directory in (self._directory, self.state_dir, self.volatile_dir):
            shutil.rmtree(directory, ignore_errors=True)
