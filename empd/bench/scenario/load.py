"""Latency while jobs come in at a part of what the daemon can do.

Open loop: jobs come when they come (Poisson), whether those before have ended or not, and the time of each runs from
the moment at which it *should* have been submitted. So nothing is left out when client or daemon stall (coordinated
omission), and what the submitting side was late by counts too; `details` have that part alone.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from statistics import median

import msgspec

from empd.bench import histogram
from empd.bench.daemon import Where, noop_mapping
from empd.bench.figures import Figure, Plot, Target, median_of, percentile
from empd.bench.running import BenchError
from empd.client import Client
from empd.client.handle import Handle

POLL_NS = 1_200_000
"""The client waits with a resolution of a millisecond; the last of it is spent polling, so that jobs go in time."""
NAP_NS = 100_000
"""Between two looks: who submits thousands of jobs a second would otherwise take a core for itself, and where there are
only two it takes it from the daemon. What comes or is due meanwhile is that much later, and is timed so."""

P99_TARGETS_MS = {50: Target(5.0, cores=4)}
END_TIMEOUT_S = 120.0
PLOTS = (Plot("Latency under load", "percent_of_capacity", "percentile", log_y=True),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for each share of capacity (in percent), in each of `runs`."""

    percents: tuple[int, ...] = (1, 50, 90)
    seconds: float = 5.0
    runs: int = 5
    capacity_jobs: int = 100_000
    jobs_max: int = 200_000
    payload_bytes: int = 100
    seed: int = 1


QUICK = Size(seconds=1.0, runs=2, capacity_jobs=20_000)


class Times(msgspec.Struct):
    """Of one run, in µs: from when each job should have come to its end, and how late it was submitted."""

    latency: list[float] = []
    lateness: list[float] = []


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`load.capacity` in jobs/s by the same loop, then `load.p50.at<percent>` and `.p99` in ms."""
    with where.daemon(noop_mapping()) as daemon, daemon.client() as client:
        loop = OpenLoop(client, daemon.service, size.payload_bytes, size.seed)
        loop.run(size.capacity_jobs // 10, float("inf"))
        capacities = [_rate(loop, size.capacity_jobs) for _ in range(size.runs)]
        settings = {**msgspec.to_builtins(size), "arrivals": "Poisson", "workers": 2}
        yield median_of("load.capacity", "jobs/s", capacities, settings=settings)
        capacity = median(capacities)
        for percent in size.percents:
            rate = capacity * percent / 100
            count = int(min(max(rate * size.seconds, 100), size.jobs_max))
            runs = [loop.run(count, rate) for _ in range(size.runs)]
            yield from _figures(runs, percent, {**settings, "jobs_per_s": rate, "jobs": count})


def _rate(loop: OpenLoop, jobs: int) -> float:
    begun_s = time.perf_counter()
    loop.run(jobs, float("inf"))
    return jobs / (time.perf_counter() - begun_s)


class OpenLoop:
    """Submits jobs at given times and notes when each ended, all through the public client."""

    def __init__(self, client: Client, service: str, payload_bytes: int, seed: int) -> None:
        self._client = client
        self._service = service
        self._payload = os.urandom(payload_bytes)
        self._chance = random.Random(seed)
        self._nap = threading.Event()  # nobody sets it

    def run(self, count: int, rate: float) -> Times:
        """`count` jobs at `rate` a second (infinite: all are due at once). Raises BenchError unless all completed."""
        times = Times()
        client, submit, now_ns = self._client, self._client.submit, time.perf_counter_ns
        failed: list[Handle] = []
        # From an exponential law: how many ns lie between this job and the next.
        pauses = [0] * count if rate == float("inf") else self._pauses(count, rate)
        ended = times.latency.append
        due_ns = now_ns()
        for pause_ns in pauses:
            due_ns += pause_ns
            self._wait(due_ns)
            handle = submit(self._service, self._payload)
            times.lateness.append(max(now_ns() - due_ns, 0) / 1e3)

            def note(handle: Handle, due_ns: int = due_ns) -> None:
                ended((now_ns() - due_ns) / 1e3)
                if handle.state != "completed":
                    failed.append(handle)

            handle.watch(note)
        deadline_ns = time.monotonic_ns() + int(END_TIMEOUT_S * 1e9)
        if not client.wait_for(lambda: len(times.latency) == count, deadline_ns) or failed:
            raise BenchError(f"{len(times.latency)} of {count} jobs ended, {len(failed)} of them without a result")
        return times

    def _pauses(self, count: int, rate: float) -> list[int]:
        return [int(self._chance.expovariate(rate) * 1e9) for _ in range(count)]

    def _wait(self, due_ns: int) -> None:
        client, now_ns = self._client, time.perf_counter_ns
        left_ns = due_ns - now_ns()
        if left_ns > POLL_NS:
            client.wait_for(lambda: False, time.monotonic_ns() + left_ns - POLL_NS)
        while (left_ns := due_ns - now_ns()) > 0:
            client.poll()
            self._nap.wait(min(left_ns, NAP_NS) / 1e9)


def _figures(runs: list[Times], percent: int, settings: dict[str, object]) -> Iterator[Figure]:
    whole = histogram.of(sample for run in runs for sample in run.latency)
    details = {
        "submitted_late_by_p50_us": median([median(run.lateness) for run in runs]),
        "submitted_late_by_p99_us": median([percentile(run.lateness, 99) for run in runs]),
        "curve_us": histogram.curve(whole),
        "hdr": histogram.encoded(whole),
    }
    for percent_of_jobs in (50, 99):
        yield median_of(
            f"load.p{percent_of_jobs}.at{percent}",
            "ms",
            [histogram.of(run.latency).get_value_at_percentile(percent_of_jobs) / 1e3 for run in runs],
            target=P99_TARGETS_MS.get(percent) if percent_of_jobs == 99 else None,
            axes={"percent_of_capacity": percent, "percentile": f"p{percent_of_jobs}"},
            details=details,
            settings=settings,
        )
