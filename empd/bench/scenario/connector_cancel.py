"""How long a cancel takes to the service behind an HTTP connector: from the client's call to when the service saw it.

`polled`: work that is submitted and asked for, and has a verb to cancel it. `plain`: one request, whose connection is
closed. One at a time, each at work when it is cancelled.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from empd.bench.figures import Figure, Target, median_of
from empd.bench.running import BenchError
from empd.client import Client
from empd.errors import JobCancelled

TIMEOUT_S = 30.0
TARGET, MAX_TARGET = Target(50.0), Target(50.0, cores=4)
SERVICES: dict[str, dict[str, Any]] = {
    "polled": {
        "connector": "RestAsyncConnector",
        "api_config": {"endpoint": "/works", "status_path": "/works/{id}", "cancel_path": "/works/{id}/cancel"},
    },
    "plain": {"connector": "RestSyncConnector", "api_config": {"endpoint": "/held"}},
}


def services(base_url: str) -> dict[str, Any]:
    """Their entries in a mapping."""
    return {
        f"cancel_{way}": {**entry, "api_config": {"base_url": base_url, "body": "{payload}", **entry["api_config"]}}
        for way, entry in SERVICES.items()
    }


def figures(client: Client, base_url: str, count: int) -> Iterator[Figure]:
    """`connector.cancel.<way>`, the median of `count` cancels in ms, and `.max`."""
    taken: dict[str, list[float]] = {way: [] for way in SERVICES}
    for number in range(count):
        for place, (way, samples) in enumerate(taken.items()):
            samples.append(_once(client, base_url, way, number * len(taken) + place))
    for way, samples in taken.items():
        settings = {"cancels": count}
        yield median_of(f"connector.cancel.{way}", "ms", samples, target=TARGET, settings=settings)
        yield Figure(
            name=f"connector.cancel.{way}.max",
            value=max(samples),
            unit="ms",
            samples=samples,
            statistic="greatest",
            target=MAX_TARGET,
            settings=settings,
        )


def _once(client: Client, base_url: str, way: str, number: int) -> float:
    job = client.submit(f"cancel_{way}", {"number": number})
    moment_ns(base_url, number, "begun")
    called_ns = time.monotonic_ns()
    job.cancel()
    seen_ns = moment_ns(base_url, number, "stopped")
    failure = job.exception(TIMEOUT_S)
    if not isinstance(failure, JobCancelled):
        raise BenchError(f"a job that was cancelled ended as {failure!r}")
    return (seen_ns - called_ns) / 1e6


def moment_ns(base_url: str, number: int, moment: str) -> int:
    """When this piece of work had `begun`, or was `stopped`; waits for it."""
    with urllib.request.urlopen(f"{base_url}/{number}/{moment}", timeout=TIMEOUT_S) as answer:
        return int(json.load(answer)["at_ns"])
