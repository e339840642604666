"""What the machine itself can do, measured in the same run: one ZeroMQ round trip, one SQLite commit.

Neither can be undercut by a daemon that is written in Python and keeps what it accepts.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Self

import zmq

from empd.bench.daemon import PLACE, BenchError
from empd.bench.figures import Figure, median_of, percentile

MESSAGE = bytes(100)
ROW = bytes(200)
_ECHO_TIMEOUT_MS = 10_000


class Echo:
    """A DEALER that talks to a Python ROUTER loop in another process, over ipc."""

    def __enter__(self) -> Self:
        self._directory = tempfile.mkdtemp(prefix="empd-bench-", dir="/tmp")
        endpoint = f"ipc://{self._directory}/echo"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._process = subprocess.Popen([sys.executable, "-m", "empd.bench.echo", endpoint])
        self._socket.rcvtimeo = _ECHO_TIMEOUT_MS
        self.round_trip_ns()  # returns when the other end is there
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.send(b"")
        try:
            self._process.wait(_ECHO_TIMEOUT_MS / 1000)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._context.destroy(linger=0)
        shutil.rmtree(self._directory, ignore_errors=True)

    def round_trip_ns(self) -> int:
        """One message there and back."""
        begun_ns = time.perf_counter_ns()
        self._socket.send(MESSAGE)
        try:
            self._socket.recv()
        except zmq.Again:
            raise BenchError("the echo process does not answer") from None
        return time.perf_counter_ns() - begun_ns


class Commit:
    """One-row transactions in a database beside the daemon's (WAL, synchronous=FULL: each is an fsync)."""

    def __init__(self, place: str = PLACE) -> None:
        self._place = place

    def __enter__(self) -> Self:
        self._directory = tempfile.mkdtemp(prefix="empd-bench-", dir=self._place)
        self._database = sqlite3.connect(f"{self._directory}/floor.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def once_ns(self) -> int:
        """One row of 200 bytes, committed."""
        begun_ns = time.perf_counter_ns()
        self._database.execute("INSERT INTO rows (body) VALUES (?)", (ROW,))
        return time.perf_counter_ns() - begun_ns


def measure(rounds: int, place: str = PLACE) -> Iterator[Figure]:
    """Both floors, by turns."""
    with Echo() as echo, Commit(place) as commit:
        pairs = [(echo.round_trip_ns() / 1e3, commit.once_ns() / 1e3) for _ in range(rounds)]
    settings = {"transport": "ipc", "message_bytes": len(MESSAGE), "row_bytes": len(ROW), "synchronous": "FULL"}
    for name, samples in zip(("floor.zmq_echo", "floor.sqlite_commit"), zip(*pairs, strict=True), strict=True):
        yield median_of(name, "µs", samples, details={"p99": percentile(samples, 99)}, settings=settings)
