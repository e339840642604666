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
from statistics import median
from typing import Self

import msgspec
import zmq

from empd.bench.daemon import PLACE, Where
from empd.bench.figures import Figure, Plot, median_of, percentile
from empd.bench.running import BenchError
from empd.prctl import die_with_parent

MESSAGE = bytes(100)
ROW = bytes(200)
_ECHO_TIMEOUT_MS = 10_000


class Echo:
    """A DEALER that talks to a Python ROUTER loop in another process, over ipc; `brokered`: through the least broker
    in a third process, so that a message makes the way of a job, client, broker, worker, and back."""

    def __init__(self, brokered: bool = False) -> None:
        self._brokered = brokered

    def __enter__(self) -> Self:
        self._directory = tempfile.mkdtemp(prefix="empd-bench-", dir="/tmp")
        server, broker = (f"ipc://{self._directory}/{name}" for name in ("echo", "broker"))
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(broker if self._brokered else server)
        self._processes = [_other_end(server)] + ([_other_end(broker, server)] if self._brokered else [])
        self._socket.rcvtimeo = _ECHO_TIMEOUT_MS
        self.round_trip_ns()  # returns when the other end is there
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.send(b"")
        for process in self._processes:
            try:
                process.wait(_ECHO_TIMEOUT_MS / 1000)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
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


def _other_end(*endpoints: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "empd.bench.echo", *endpoints],
        preexec_fn=die_with_parent,  # noqa: PLW1509  # made before this process has a second thread
    )


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


RUNS = 10
PLOTS = (Plot("What the machine itself can do", "of"),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Echoes and commits in each run."""

    rounds: int = 500
    runs: int = RUNS


QUICK = Size(rounds=100, runs=5)


WORDS = {
    "floor.zmq_echo": "ZeroMQ echo",
    "floor.zmq_brokered_echo": "echo through the least broker",
    "floor.sqlite_commit": "SQLite commit",
}


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`floor.zmq_echo`, `.zmq_brokered_echo`, `.sqlite_commit`, in µs, by turns; a sample is a run's median."""
    with Echo() as echo, Echo(brokered=True) as brokered, Commit(where.place) as commit:
        probes = {
            "floor.zmq_echo": echo.round_trip_ns,
            "floor.zmq_brokered_echo": brokered.round_trip_ns,
            "floor.sqlite_commit": commit.once_ns,
        }
        runs = [[[probe() / 1e3 for probe in probes.values()] for _ in range(size.rounds)] for _ in range(size.runs)]
    settings = {"transport": "ipc", "message_bytes": len(MESSAGE), "row_bytes": len(ROW), "synchronous": "FULL"}
    for index, name in enumerate(probes):
        by_run = [[turn[index] for turn in turns] for turns in runs]
        p99 = percentile([sample for run in by_run for sample in run], 99)
        yield median_of(
            name,
            "µs",
            [median(run) for run in by_run],
            axes={"of": WORDS[name]},
            details={"p99_us": p99},
            settings=settings,
        )
