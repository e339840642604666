"""What a job system has to do here: echo 100 bytes, by two workers, with every result known to the submitter."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

from empd.prctl import die_with_parent

WORKERS = 2
START_TIMEOUT_S = 60.0
RESULT_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


class Peer(ABC):
    """One job system in one setting. Entered, it runs; left, all its processes are gone.

    `settings` says what each setting is; `has_queue`, whether jobs are anywhere else while they run; `again_limit_s`,
    how long a job whose worker was killed is waited for, where that is longer than is usual; `package` and `server`,
    whose versions are told. `put` returns whatever `results` needs; payloads and results are bytes.
    """

    name: ClassVar[str]
    settings: ClassVar[dict[str, str]]
    large_bytes: ClassVar[int] = 16 << 20
    has_queue: ClassVar[bool] = True
    again_limit_s: ClassVar[float] = 0.0
    package: ClassVar[str] = ""
    server: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setting: str, directory: Path) -> None:
        self.setting = setting
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.broker_pid: int | None = None

    @abstractmethod
    def start(self) -> None:
        """Starts what it needs. It need not wait: the first job's result says that all is up."""

    @abstractmethod
    def put(self, payloads: Sequence[bytes]) -> Any:
        """Submits a job for each payload, in the way that is recommended for many."""

    @abstractmethod
    def results(self, handles: Any) -> list[bytes]:
        """Waits for all and returns what came back, in order."""

    def hold(self, payload: bytes) -> None:
        """Submits the job that is to be caught in the middle (see `peers.job`); nobody waits for it."""
        self.put([payload])

    def stop(self) -> None:  # noqa: B027  # not every peer has something here
        """Ends what is in this process: connections."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # whatever it was, no process may stay behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            end(self.workers + self.processes)

    def spawn(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process of this peer, which ends with this one; its words go into a log."""
        here = str(Path(__file__).parents[1])
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": here, **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # it allocates nothing
            )
        self.processes.append(process)
        return process

    def work(self, *command: str, count: int = 1, **environment: str) -> None:
        """Worker processes: these are ended when jobs are to wait."""
        for _ in range(count):
            process = self.spawn(*command, **environment)
            self.processes.remove(process)
            self.workers.append(process)

    def park(self) -> None:
        """Ends the workers: what is submitted from now on waits."""
        workers, self.workers = self.workers, []
        end(workers)


@cache
def versions(package: str, server: tuple[str, ...]) -> str:
    """`rq 3.0.0, redis-server 7.0.15`: of a Python package, and of a program by the command that says it."""
    found = [f"{package} {metadata.version(package)}"] if package else []
    if server:
        said = subprocess.run(server, capture_output=True, text=True, check=True).stdout
        number = re.search(r"\d+(\.\d+)+", said)
        found.append(f"{server[0]} {number[0] if number else said.strip()}")
    return ", ".join(found)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of this environment."""
    return (sys.executable, "-m", name, *arguments)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ends the processes and all that they started."""
    family = []
    for process in processes:
        try:
            family += psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def free_port() -> int:
    """A port that is free on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Returns when somebody listens there. Raises TimeoutError."""
    until(lambda: _listens(port), f"a server on port {port}")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(condition: Callable[[], bool], what: str, limit_s: float = START_TIMEOUT_S) -> None:
    """Looks until the condition holds. Raises TimeoutError at the limit."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {limit_s:g} s in vain for {what}")
        time.sleep(0.01)
