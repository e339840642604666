"""A web process for tests: started as a child, asked over HTTP, told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from empd import lifecycle
from empd.lifecycle import ChildKind, Control, Notice
from empd.memory.board import Board, Identity, SlotState

ENTRY = Path(__file__).with_name("web_entry.py")
SLOT = 3
START_TIMEOUT_S = 60.0


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Polls until the condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


async def send(url: str, method: str, data: bytes | None, headers: dict[str, str]) -> Answer:
    """One request on a connection of its own."""
    async with aiohttp.ClientSession() as session, session.request(method, url, data=data, headers=headers) as it:
        return Answer(it.status, it.headers, await it.read())


class Web:
    """A running web process."""

    def __init__(self, root: Path, options: dict[str, Any]) -> None:
        self.root = root
        self.runtime_dir = root / "run"
        self.state_dir = root / "state"
        self.board = Board.create(16)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.options = options
        self._start(theirs)

    def _start(self, theirs: socket.socket) -> None:
        identity = Identity(ChildKind.WEB, "web", generation=1, state=SlotState.READY, started_mono_ns=1)
        self.board.writer(SLOT, Identity).write(identity)
        fds = (theirs.fileno(), self.board.fd)
        for fd in fds:
            os.set_inheritable(fd, True)
        arguments = [sys.executable, str(ENTRY), *map(str, fds), str(SLOT), str(self.root), json.dumps(self.options)]
        self.process = subprocess.Popen(arguments, pass_fds=fds, stderr=(self.root / "stderr").open("ab"))
        theirs.close()
        self.control.setblocking(False)
        wait_for(self._is_ready, f"READY; stderr: {self.stderr()}", START_TIMEOUT_S)
        self.address = (self.runtime_dir / "http").read_text().strip()
        self.url = f"http://{self.address}"

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the web process ended with {self.process.returncode}: {self.stderr()}")
        return any(record.notice is Notice.READY for record in lifecycle.receive(self.control) or ())

    def stderr(self) -> str:
        """What the process has said."""
        path = self.root / "stderr"
        return path.read_text() if path.exists() else ""

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; `body` bytes as they are, anything else as JSON. Underscores in header names become hyphens."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        return asyncio.run(send(self.url + path, method, data, named))

    def restart(self) -> None:
        """Kills the process without warning and starts a successor."""
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._start(theirs)

    def tell(self, notice: Notice, value: int = 0) -> None:
        """Sends a control record."""
        assert lifecycle.send(self.control, Control(notice, ChildKind.WEB, value=value))

    def stop(self) -> int:
        """Asks it to stop; the exit status."""
        if self.process.poll() is None:
            self.tell(Notice.STOP)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.control.close()
            self.board.close()
