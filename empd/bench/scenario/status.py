"""`/v1/status` at 10 requests a second under full load: how long it takes, and how much throughput it costs.

Runs with and without the requests alternate, in pairs whose order turns; the loss is the median of the pairs' ratios
with a distribution-free interval (sign test). The requests come from a process of their own, each timed from when it
was due.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from empd.bench import verdict
from empd.bench.daemon import Where, noop_mapping
from empd.bench.figures import Figure, Plot, Target, median_of, percentile
from empd.bench.running import BenchError, Running
from empd.bench.scenario.throughput import Load
from empd.prctl import die_with_parent

POLLER_TIMEOUT_S = 60.0
P99_TARGET = Target(25.0, cores=4)
LOSS_TARGET = Target(5.0, cores=4)
PLOTS = (
    Plot("Answers of /v1/status under full load", "asked", of_samples=True),
    Plot("Throughput without and with 10 requests/s", "requests"),
)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Pairs of runs, and jobs in each run."""

    pairs: int = 10
    jobs: int = 300_000
    requests_per_s: float = 10.0
    path: str = "/v1/status"


QUICK = Size(pairs=6, jobs=30_000)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`status.p50` and `.p99` in ms; `status.throughput.alone` and `.asked`, in jobs/s; `status.loss`, in percent,
    and its upper bound."""
    rates: list[tuple[float, float]] = []
    times_ms: list[float] = []
    with where.daemon(noop_mapping()) as daemon, daemon.client() as client:
        load = Load(client, daemon.service)
        load.run(size.jobs // 4)
        for index in range(size.pairs):
            by_polling = {}
            for polling in (True, False) if index % 2 else (False, True):
                if polling:
                    rate, asked = _polled(daemon, load, size)
                    by_polling[True] = rate
                    times_ms += asked
                else:
                    by_polling[False] = load.run(size.jobs)
            rates.append((by_polling[False], by_polling[True]))
    settings = {**msgspec.to_builtins(size), "requests": len(times_ms)}
    for percent, target in ((50, None), (99, P99_TARGET)):
        yield Figure(
            name=f"status.p{percent}",
            value=percentile(times_ms, percent),
            unit="ms",
            samples=times_ms,
            statistic="median" if percent == 50 else f"p{percent}",
            target=target,
            axes={"asked": size.path, "share": percent},
            settings=settings,
        )
    losses = [100 * (1 - polled / alone) for alone, polled in rates]
    interval = verdict.of_pairs(rates)
    low, high = (100 * (1 - ratio) for ratio in (interval.high, interval.low))
    details = {"low_percent": low, "high_percent": high, "coverage": interval.coverage, "interval": interval.method}
    for name, said, samples in zip(("alone", "asked"), ("none", "10 a second"), zip(*rates, strict=True), strict=True):
        axes = {"requests": said}
        yield median_of(f"status.throughput.{name}", "jobs/s", samples, axes=axes, settings=settings)
    yield median_of("status.loss", "%", losses, details=details, settings=settings)
    # The bound asks that the interval excludes a larger loss, so it is the interval's end that is compared.
    yield Figure(
        name="status.loss_at_most",
        value=high,
        unit="%",
        samples=losses,
        statistic="upper end",
        target=LOSS_TARGET,
        details=details,
        settings=settings,
    )


def _polled(daemon: Running, load: Load, size: Size) -> tuple[float, list[float]]:
    """(jobs/s, ms of each request) of one run with the requests."""
    arguments = [daemon.http_address, size.path, str(size.requests_per_s)]
    with subprocess.Popen(
        [sys.executable, "-m", "empd.bench.poller", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509
    ) as poller:
        try:
            asking = poller.stdout is not None and poller.stdout.readline()
            rate = load.run(size.jobs) if asking else 0.0
            said, _ = poller.communicate(timeout=POLLER_TIMEOUT_S)
        finally:
            poller.kill()
    if poller.returncode:
        raise BenchError(f"the requests for {size.path} failed; see above")
    times_ms: list[float] = json.loads(said)
    return rate, times_ms
