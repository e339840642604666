"""One daemon for the command line's tests, and a way to run commands against it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from empd.loading import load


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Box(NamedTuple):
    """A daemon's directories, and the environment in which commands find it."""

    directory: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def empd(self, *arguments: str, stdin: str = "", timeout_s: float = 60.0) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "empd", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def at_a_terminal(self, *arguments: str, interrupt_at: str = "") -> tuple[int, str]:
        """Exit code and all that a person sees; Ctrl-C is pressed when `interrupt_at` shows."""
        ours, theirs = os.openpty()
        command = [sys.executable, "-m", "empd", *arguments]
        environment = self.environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
        process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = b""
        try:
            while chunk := _read(ours):
                seen += chunk
                if interrupt_at and interrupt_at.encode() in seen:
                    process.send_signal(signal.SIGINT)
                    interrupt_at = ""
        finally:
            os.close(ours)
        return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "")


def _read(terminal: int) -> bytes:
    """What comes next; nothing when the last writer is gone."""
    readable, _, _ = select.select([terminal], [], [], 60)
    assert readable, "nothing was written for a minute"
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: how Linux says that nobody holds the other end
        return b""


def eventually(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The condition's value once it holds."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    directory = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    (directory / "empd.toml").touch()
    own = {
        "EMPD_CONFIG": str(directory / "empd.toml"),
        "EMPD_STATE_DIR": str(directory / "state"),
        "EMPD_RUNTIME_DIR": str(directory / "run"),
        "EMPD_HTTP": "127.0.0.1:0",
        "EMPD_GPUS": "virtual:2",
        "EMPD_BACKOFF_S": "0.05",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMPD_")} | own
    volatile_dir = load(None, environment).volatile_dir
    log = (directory / "daemon.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "empd", "run"], env=environment, stdout=log, stderr=log)
    found = Box(directory, environment, process)
    try:
        eventually(lambda: (directory / "run/http").exists() and found.empd("status").code == 0)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()
        for path in (directory, volatile_dir):
            shutil.rmtree(path, ignore_errors=True)
