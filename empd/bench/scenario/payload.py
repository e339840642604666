"""Large payloads, one way and checked: from the client's bytes to a worker that has read and verified them.

`volatile` and `durable`: as blobs of the arena; `inline`: the same bytes through the sockets, in jobs of 64 KiB, which
is what fits into a frame; `http`: uploaded to `/v1/blobs` and then submitted. Beside them what this program does bare:
write a new file, read it back, checksum (on tmpfs; on the disk with fdatasync). Ways take turns within a run.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from empd.bench import processes
from empd.bench.daemon import Daemon, Where, noop_mapping
from empd.bench.figures import Figure, Plot, Target, median_of, slope
from empd.bench.running import BenchError
from empd.client import Client
from empd.memory.arena import Arena
from empd.payload import INLINE_BYTES_MAX, BlobRef

MIB = 1 << 20
SHM = Path("/dev/shm")
TIMEOUT_S = 120.0
COPIES_AT_ONCE = 4
"""How many copies of a payload may lie in a memory file system at a time."""

TARGET_BYTES = 64 * MIB
BARE_TARGET = Target(0.5, at_least=True, cores=4)
SOCKET_TARGET = Target(3.0, at_least=True, cores=4)
UNTOUCHED_TARGET = Target(0.1)
"""By how much a MiB more may cost the broker, as a part of what a copy of it costs this program: who copied it once, or
read it once, would be at 1 or not far below."""

COPIES = 5
WAYS = ("bare_tmpfs", "volatile", "inline", "http", "bare_disk", "durable")
PLOTS = (
    Plot("Payloads one way, checked", "payload_bytes", "way", {"of": "rate"}, log_x=True, log_y=True),
    Plot("Broker CPU of one job, by payload", "payload_bytes", where={"of": "broker"}, log_x=True),
)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Payloads, and how many of each in a run: so many that `bytes_per_run` are moved, at least one."""

    payloads: tuple[int, ...] = (64 * 1024 + 1, MIB, 16 * MIB, 64 * MIB, 256 * MIB)
    bytes_per_run: int = 64 * MIB
    count_max: int = 64
    runs: int = 5


QUICK = Size(payloads=(64 * 1024 + 1, MIB, 16 * MIB, 64 * MIB), bytes_per_run=16 * MIB, count_max=8, runs=3)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`payload.<way>.<bytes>` in MiB/s, the ratios of volatile blobs to the bare write and to the sockets, and what a
    job costs the broker, in µs and by its slope, which is also told as a part of what one copy costs."""
    copied_us: list[float] = []
    broker: list[tuple[float, float]] = []
    # Volatile blobs and sockets are compared where neither waits for a disk; each has a daemon of its own, so that what
    # one puts off (trimming of inline payloads) is not charged to the other.
    with (
        Daemon(noop_mapping(1), where.place, durability="memory") as volatile,
        Daemon(noop_mapping(1), where.place, durability="memory") as sockets,
        Daemon(noop_mapping(1), where.place) as durable,
        contextlib.ExitStack() as stack,
    ):
        ends = {
            name: (daemon, stack.enter_context(daemon.client()))
            for name, daemon in (("volatile", volatile), ("sockets", sockets), ("durable", durable))
        }
        for payload_bytes in size.payloads:
            if shutil.disk_usage(SHM).free < COPIES_AT_ONCE * payload_bytes:
                continue  # a container's /dev/shm may be small; the figure is left out, never made of swapping
            ways = Ways(ends, os.urandom(payload_bytes), where.place)
            copied_us = [_copied_us_per_mib(payload_bytes) for _ in range(COPIES)]
            count = max(1, min(size.count_max, size.bytes_per_run // payload_bytes))
            rates, broker_us = ways.measure(count, size.runs)
            broker.append((payload_bytes / MIB, median(broker_us)))
            yield from _figures(payload_bytes, rates, {"count": count, "runs": size.runs})
            yield _broker_figure(payload_bytes, broker_us, size)
    if len(broker) > 1:
        grown = slope(broker)
        settings = {"payloads": size.payloads, "runs": size.runs}
        name = "payload.broker_cpu.slope"
        yield Figure(name=name, value=grown, unit="µs per MiB", samples=[grown], settings=settings)
        ratio = grown / median(copied_us)
        details = {"copy_us_per_mib": median(copied_us)}
        yield Figure(
            name="payload.broker_cpu.slope_to_copy",
            value=ratio,
            unit="ratio",
            samples=[ratio],
            target=UNTOUCHED_TARGET,
            details=details,
            settings=settings,
        )


def _copied_us_per_mib(count: int) -> float:
    source = b"x" * count
    begun_s = time.perf_counter()
    bytearray(source)
    return (time.perf_counter() - begun_s) * 1e6 / (count / MIB)


class Ways:
    """One payload's ways from here to where it has been read and verified."""

    def __init__(self, ends: dict[str, tuple[Daemon, Client]], payload: bytes, place: str) -> None:
        self._ends = ends
        self._payload = payload
        self._place = place
        self._ways: dict[str, Callable[[], None]] = {
            "bare_tmpfs": lambda: self._bare(str(SHM), sync=False),
            "volatile": self._volatile,
            "inline": self._inline,
            "http": self._http,
            "bare_disk": lambda: self._bare(self._place, sync=True),
            "durable": self._durable,
        }

    def measure(self, count: int, runs: int) -> tuple[dict[str, list[float]], list[float]]:
        """(MiB/s of each way, one for each run; µs of broker CPU for each volatile job)."""
        rates: dict[str, list[float]] = {way: [] for way in self._ways}
        broker_us: list[float] = []
        pid = self._ends["volatile"][0].child("broker").pid
        for way in self._ways.values():
            way()
        for _ in range(runs):
            for name, way in self._ways.items():
                used_s, begun_s = processes.cpu_s(pid), time.perf_counter()
                for _ in range(count):
                    way()
                took_s = time.perf_counter() - begun_s
                rates[name].append(count * len(self._payload) / MIB / took_s)
                if name == "volatile":
                    broker_us.append((processes.cpu_s(pid) - used_s) * 1e6 / count)
        return rates, broker_us

    def _bare(self, directory: str, sync: bool) -> None:
        checksum = zlib.crc32(self._payload)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            _write(file.fileno(), self._payload)
            if sync:
                os.fdatasync(file.fileno())
            if zlib.crc32(os.pread(file.fileno(), len(self._payload), 0)) != checksum:
                raise BenchError(f"{directory} gave back other bytes than were written")

    def _volatile(self) -> None:
        self._as_blob("volatile", durable=False)

    def _durable(self) -> None:
        self._as_blob("durable", durable=True)

    def _as_blob(self, name: str, durable: bool) -> None:
        arena = self._arena(name)
        ref = arena.put(self._payload, durable=durable, encoding="bytes")
        self._ends[name][1].submit("noop", ref).result(TIMEOUT_S)
        arena.remove(ref.id)  # the daemon would keep it for a while, and memory is what is measured here

    def _arena(self, name: str) -> Arena:
        daemon = self._ends[name][0]
        return Arena(daemon.state_dir / "state" / "spool", daemon.volatile_dir)

    def _inline(self) -> None:
        view = memoryview(self._payload)
        parts = (view[start : start + INLINE_BYTES_MAX] for start in range(0, len(view), INLINE_BYTES_MAX))
        jobs = self._ends["sockets"][1].submit_many("noop", parts)
        deque(jobs.as_completed(TIMEOUT_S), maxlen=0)
        if any(job.failure() for job in jobs):
            raise BenchError("a job with an inline payload did not complete")

    def _http(self) -> None:
        daemon, client = self._ends["sockets"]
        connection = http.client.HTTPConnection(daemon.http_address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", "/v1/blobs", self._payload, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            body = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status >= 300:
            raise BenchError(f"/v1/blobs answers {answer.status}: {body}")
        ref = BlobRef(body["blob"], len(self._payload), zlib.crc32(self._payload))
        client.submit("noop", ref).result(TIMEOUT_S)
        self._arena("sockets").remove(ref.id)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _figures(payload_bytes: int, rates: dict[str, list[float]], settings: dict[str, Any]) -> Iterator[Figure]:
    for way in WAYS:
        axes = {"payload_bytes": payload_bytes, "way": way, "of": "rate"}
        yield median_of(f"payload.{way}.{payload_bytes}", "MiB/s", rates[way], axes=axes, settings=settings)
    wanted = payload_bytes == TARGET_BYTES
    for name, way, other, target in (
        ("volatile_to_bare", "volatile", "bare_tmpfs", BARE_TARGET),
        ("volatile_to_inline", "volatile", "inline", SOCKET_TARGET),
        ("volatile_to_http", "volatile", "http", None),
        ("durable_to_bare", "durable", "bare_disk", None),
    ):
        ratios = [one / two for one, two in zip(rates[way], rates[other], strict=True)]
        bound = target if wanted else None
        yield median_of(f"payload.{name}.{payload_bytes}", "ratio", ratios, target=bound, settings=settings)


def _broker_figure(payload_bytes: int, broker_us: list[float], size: Size) -> Figure:
    return median_of(
        f"payload.broker_cpu.{payload_bytes}",
        "µs",
        broker_us,
        axes={"payload_bytes": payload_bytes, "of": "broker"},
        settings={"bytes_per_run": size.bytes_per_run},
    )
