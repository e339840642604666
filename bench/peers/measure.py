"""One peer in one setting: throughput, one job at a time, 16 MiB in and out, memory of a waiting job, and how
long after a kill a job that was interrupted starts again.

python -m peers.measure NAME SETTING SIZE PLACE   lines on standard output (SIZE in JSON; data lies under PLACE)
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import msgspec
import psutil

from empd.bench import machine
from empd.bench.daemon import PLACE
from empd.bench.figures import Figure, percentile
from empd.bench.running import BenchError
from peers import job
from peers.interface import Peer, until, versions
from peers.table import PEERS

MIB = 1 << 20


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and the most jobs of a run of throughput; jobs one at a time; large jobs; jobs that wait; workers killed,
    and how long at most a job is waited for then. `part_s`: no more is repeated where so much time has passed, so that
    those who are slow leave time for the others."""

    seconds: float = 1.5
    jobs_max: int = 200_000
    alone: int = 300
    large: int = 6
    waiting: int = 20_000
    runs: int = 5
    kills: int = 3
    again_limit_s: float = 15.0
    part_s: float = 8.0


QUICK = Size(
    seconds=0.5, jobs_max=50_000, alone=50, large=2, waiting=5000, runs=3, kills=1, again_limit_s=4.0, part_s=3.0
)
PROBE_JOBS = 32
PAYLOAD_BYTES = 100
FEWEST = 2
"""Of what is repeated until `part_s` has passed, at least so many."""

PUT_JOBS = 1000


def measure(peer: Peer, size: Size) -> Iterator[Figure]:
    """The figures of a peer that runs. Raises BenchError when what comes back is not what was sent."""
    echo(peer, [os.urandom(PAYLOAD_BYTES)])  # when it is back, all is up
    rate = PROBE_JOBS / echo(peer, payloads_of(PROBE_JOBS))
    count = int(min(max(rate * size.seconds, PROBE_JOBS), size.jobs_max))
    rate = count / echo(peer, payloads_of(count))  # the first was short, and cold
    count = int(min(max(rate * size.seconds, PROBE_JOBS), size.jobs_max))
    yield _figure(peer, "throughput", "jobs/s", [count / echo(peer, payloads_of(count)) for _ in range(size.runs)])
    alone_ms = repeated(lambda: echo(peer, payloads_of(1)) * 1e3, size.alone, size.part_s)
    yield _figure(peer, "latency", "ms", alone_ms)
    yield _figure(peer, "latency_p99", "ms", alone_ms, percentile(alone_ms, 99), statistic="p99")
    large = os.urandom(peer.large_bytes)
    rates = repeated(lambda: 2 * len(large) / MIB / echo(peer, [large]), size.large, size.part_s)
    yield _figure(peer, "payload", "MiB/s", rates)


def repeated(once: Callable[[], float], count: int, limit_s: float) -> list[float]:
    """So many samples, or fewer when the time is up."""
    begun_s = time.monotonic()
    found: list[float] = []
    while len(found) < count and (len(found) < FEWEST or time.monotonic() - begun_s < limit_s):
        found.append(once())
    return found


def measure_waiting(peer: Peer, size: Size) -> Iterator[Figure]:
    """What a waiting job costs: of a peer that has only just begun, and so has no memory to use again."""
    echo(peer, [os.urandom(PAYLOAD_BYTES)])
    if peer.broker_pid is not None:
        each, waiting = waiting_bytes(peer, size)
        yield _figure(peer, "memory", "bytes", [each], details={"waiting": waiting})


def measure_recovery(start: Callable[[], AbstractContextManager[Peer]], size: Size) -> Iterator[Figure]:
    """kill -9 of the process in which a job runs, to the job's next start; each time of a peer that has just begun, as
    not every peer replaces its worker. Where a job does not start again within the limit, that is the last time, the
    limit stands for it, and `again` is false; where it takes very long, once is enough."""
    samples_ms: list[float] = []
    again = True
    while not samples_ms or (again and len(samples_ms) < size.kills and sum(samples_ms) < size.part_s * 1e3):
        with start() as peer:
            if not peer.has_queue:
                return
            limit_s = max(size.again_limit_s, peer.again_limit_s if size != QUICK else 0.0)
            again_s = _start_again_s(peer, limit_s)
        again = again_s is not None
        samples_ms.append((limit_s if again_s is None else again_s) * 1e3)
    if again:
        yield _figure(peer, "recovery", "ms", samples_ms, details={"again": True})
    else:
        last_ms = samples_ms[-1]
        yield _figure(peer, "recovery", "ms", samples_ms, last_ms, statistic="limit", details={"again": False})


def _start_again_s(peer: Peer, limit_s: float) -> float | None:
    echo(peer, [os.urandom(PAYLOAD_BYTES)])
    file = peer.directory / "starts"
    peer.hold(job.holding(file))
    until(lambda: bool(job.starts(file)), "the job to start")
    psutil.Process(job.starts(file)[0].pid).kill()
    killed_s = time.monotonic()
    try:
        until(lambda: len(job.starts(file)) > 1, "its next start", limit_s)
    except TimeoutError:
        return None
    return job.starts(file)[1].at_s - killed_s


def _figure(peer: Peer, of: str, unit: str, samples: list[float], value: float | None = None, **more: Any) -> Figure:
    return Figure(
        name=f"peers.{peer.name.lower().replace(', ', '-').replace(' ', '-')}.{peer.setting}.{of}",
        value=median(samples) if value is None else value,
        unit=unit,
        samples=samples,
        axes={"peer": peer.name, "setting": peer.setting, "of": of},
        settings={"setting": peer.settings[peer.setting], "versions": versions(peer.package, peer.server)},
        **more,
    )


def payloads_of(count: int) -> list[bytes]:
    """Payloads, all different."""
    block = os.urandom(PAYLOAD_BYTES - 8)
    return [index.to_bytes(8, "little") + block for index in range(count)]


def echo(peer: Peer, payloads: list[bytes]) -> float:
    """Seconds from the first submit until every result is here. Raises BenchError when one is wrong."""
    begun_s = time.perf_counter()
    found = peer.results(peer.put(payloads))
    took_s = time.perf_counter() - begun_s
    if found != payloads:
        raise BenchError(f"{peer.name} did not give back what it was given")
    return took_s


def waiting_bytes(peer: Peer, size: Size) -> tuple[float, int]:
    """Growth of the broker's memory for each job that waits, beyond its payload; and how many do. Nobody takes them."""
    assert peer.broker_pid is not None
    broker = psutil.Process(peer.broker_pid)
    peer.park()
    before = broker.memory_full_info().uss
    begun_s = time.monotonic()
    count = 0
    while count < size.waiting and (count == 0 or time.monotonic() - begun_s < size.part_s):
        more = min(PUT_JOBS, size.waiting - count)
        peer.put(payloads_of(more))
        count += more
    held: list[int] = []

    def is_steady() -> bool:
        held.append(broker.memory_full_info().uss)
        return len(held) > 10 and held[-1] == held[-10]

    until(is_steady, "the broker to have taken all")
    return (held[-1] - before) / count - PAYLOAD_BYTES, count


def main() -> None:
    """Lines on standard output."""
    kind, setting = PEERS[sys.argv[1]](), sys.argv[2]
    size = msgspec.json.decode(sys.argv[3], type=Size)
    described = {**machine.describe(PLACE), "quick": size == QUICK, "endpoint": ""}
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no line

    def start() -> Iterator[Peer]:
        """A peer that has only just begun."""
        with tempfile.TemporaryDirectory(dir=sys.argv[4]) as place, kind(setting, Path(place)) as peer:
            yield peer

    fresh = contextlib.contextmanager(start)
    for part in (measure, measure_waiting):
        with fresh() as peer:
            _print(part(peer, size), described, out)
    _print(measure_recovery(fresh, size), described, out)


def _print(figures: Iterator[Figure], described: dict[str, Any], out: TextIO) -> None:
    for figure in figures:
        line = {**figure.as_line("peers", described["cores"]), "machine": described}
        print(msgspec.json.encode(line).decode(), file=out, flush=True)


if __name__ == "__main__":
    main()
