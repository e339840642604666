"""What waiting jobs cost the daemon: the broker's memory for each, and what a claim costs beside a million of them.

The jobs wait for a service whose worker is drained; another service's idle workers take the jobs that are timed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec

from empd.bench import processes
from empd.bench.daemon import Daemon, Where, mapping_of
from empd.bench.figures import Figure, Plot, Target, median_of, percentile
from empd.bench.processes import Memory
from empd.bench.running import Running, rest, wait_until
from empd.bench.scenario.latency import job_us
from empd.client import Client

NO_OP = {"api_config": {"duration_s": 0}}
MEMORY_TARGET = Target(500.0)
CLAIM_TARGET = Target(2.0)
FEW = 10
TARGETS_FROM = 100_000
"""With fewer waiting, what the broker holds anyhow is not yet spread over many: the bound is for many."""

_SETTLED_ROWS = 100
_LOOK_INTERVAL_S = 0.02
_SETTLE_TIMEOUT_S = 300.0
PLOTS = (
    Plot("Broker memory of each waiting job, beyond its payload", "waiting", where={"of": "memory"}, log_x=True),
    Plot("One job beside many that wait, against beside ten", "waiting", where={"of": "job"}, log_x=True),
)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs wait when memory is looked at and claims are timed; how many are timed, in each of `runs`."""

    waiting: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    timed_jobs: int = 300
    runs: int = 5
    payload_bytes: int = 100


QUICK = Size(waiting=(1000, 10_000, 100_000), timed_jobs=50, runs=3)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """For each number waiting: `memory.per_waiting_job.<n>` in bytes beyond the payload, `claim.daemon.<n>`, the time
    of one job as a ratio to that with 10 waiting."""
    settings = msgspec.to_builtins(size)
    place = where.place
    # Claims are timed by turns, so there is one daemon with few jobs waiting and one with many.
    with _parked(place) as few, _parked(place) as many, few.client() as few_client, many.client() as many_client:
        for daemon, client in ((few, few_client), (many, many_client)):
            _drain(client)
            fill(daemon, FEW, size.payload_bytes)
            _warm_up(client, size)
            settle(daemon)
        before, journal_bytes = _memory(many), _journal_bytes(many_client)
        waiting = FEW
        for total in size.waiting:
            fill(many, total - waiting, size.payload_bytes)
            waiting = total
            settle(many)
            grown = (_journal_bytes(many_client) - journal_bytes) / (total - FEW)
            yield _memory_figure(before, _memory(many), total, {**settings, "journal_bytes_per_job": grown})
            for client in (few_client, many_client):
                _warm_up(client, size)
            yield _claim_figure(_timed(few_client, many_client, size), waiting, settings)


def _journal_bytes(client: Client) -> int:
    size_bytes: int = client.status()["journal"]["size_bytes"]
    return size_bytes


def _parked(place: str) -> Daemon:
    return Daemon(mapping_of({"parked": NO_OP, "noop": NO_OP}, instances=1, max_concurrent_jobs=512), place)


def _drain(client: Client) -> None:
    parked = [worker["name"] for worker in client.status()["workers"] if worker["type"] == "parked"]
    client.operate("drain", parked)


def fill(daemon: Running, count: int, payload_bytes: int) -> None:
    """Submits jobs that nobody takes, from a client that then leaves them behind."""
    payloads = [os.urandom(payload_bytes) for _ in range(256)]
    with daemon.client(window=count) as client:
        client.submit_many("parked", (payloads[i & 255] for i in range(count)))
        client.flush(_SETTLE_TIMEOUT_S)


def settle(daemon: Running) -> None:
    """Returns when history has read what the journal holds: nothing of what was done is left to be written.

    Where it is, is what it says of itself, which counts ended jobs only, or what it told the broker, which is one frame
    behind: whichever is further.
    """

    def read() -> bool:
        rest(_LOOK_INTERVAL_S)
        found = daemon.picture()
        if found["broker"] is None:
            return False
        read_to = max(found["history"]["through_seq"], found["broker"]["consumers"].get("history", 0))
        return bool(found["broker"]["journal"]["last_seq"] - read_to < _SETTLED_ROWS)

    wait_until(read, "history to read the journal", _SETTLE_TIMEOUT_S)


def _warm_up(client: Client, size: Size) -> None:
    for _ in range(size.timed_jobs // 10):
        job_us(client, "noop", size.payload_bytes)


def _timed(few: Client, many: Client, size: Size) -> list[tuple[list[float], list[float]]]:
    """For each run, times beside few and beside many."""
    pairs = [
        [
            (job_us(few, "noop", size.payload_bytes), job_us(many, "noop", size.payload_bytes))
            for _ in range(size.timed_jobs)
        ]
        for _ in range(size.runs)
    ]
    return [([one for one, _ in run], [other for _, other in run]) for run in pairs]


def _memory(daemon: Daemon) -> Memory:
    return processes.memory(daemon.child("broker").pid)


def _memory_figure(before: Memory, after: Memory, count: int, settings: dict[str, Any]) -> Figure:
    payload_bytes = settings["payload_bytes"]
    journal_bytes = settings.pop("journal_bytes_per_job")
    each = Memory(*((now - then) / (count - FEW) - payload_bytes for now, then in zip(after, before, strict=True)))
    return Figure(
        name=f"memory.per_waiting_job.{count}",
        value=each.uss,
        unit="bytes",
        samples=[each.uss],
        target=MEMORY_TARGET if count >= TARGETS_FROM else None,
        axes={"waiting": count, "of": "memory"},
        details={
            "journal_bytes_per_job": journal_bytes,
            "by_rss_bytes": each.rss,
            "broker_uss_bytes": after.uss,
            "broker_rss_bytes": after.rss,
        },
        settings=settings,
    )


def _claim_figure(runs: list[tuple[list[float], list[float]]], count: int, settings: dict[str, Any]) -> Figure:
    details = {
        "p50_at_few_us": median([median(few) for few, _ in runs]),
        "p50_at_many_us": median([median(many) for _, many in runs]),
        "p99_at_few_us": median([percentile(few, 99) for few, _ in runs]),
        "p99_at_many_us": median([percentile(many, 99) for _, many in runs]),
        "waiting_at_few": FEW,
    }
    ratios = [median(many) / median(few) for few, many in runs]
    return median_of(
        f"claim.daemon.{count}",
        "ratio",
        ratios,
        target=CLAIM_TARGET,
        axes={"waiting": count, "of": "job"},
        details=details,
        settings=settings,
    )
