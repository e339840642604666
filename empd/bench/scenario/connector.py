"""What empd and its HTTP connector cost: a service behind HTTP through daemon and `RestSyncConnector`, against a bare
aiohttp loop in this process that asks the same server, with as many requests at once.

The server answers at once (then the difference is all there is to see) or after 10 ms. Both ways take turns. Beside
that, how long a cancel takes to the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from statistics import median
from typing import Any

import aiohttp
import msgspec

from empd.bench.daemon import Daemon, Where
from empd.bench.figures import Figure, Plot, Target, median_of
from empd.bench.running import BenchError
from empd.bench.scenario import connector_cancel
from empd.bench.scenario.latency import job_us
from empd.client import Client
from empd.prctl import die_with_parent

TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
TARGETS = {"after_10ms": Target(0.85, at_least=True, cores=4)}
ANSWERS = {"at_once": "/now", "after_10ms": "/later"}
PLOTS = (Plot("A service behind HTTP", "answer", "way", {"of": "rate"}),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in each run, requests at once, requests one after the other, and cancels of each kind."""

    jobs: int = 10_000
    at_once: int = 64
    alone: int = 300
    runs: int = 5
    cancels: int = 100


QUICK = Size(jobs=800, alone=30, runs=3, cancels=30)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`connector.<answer>.empd` and `.bare` in jobs/s, their ratio `.to_bare`; `.added`, µs that one alone takes
    more; `connector.cancel.<way>`."""
    settings = msgspec.to_builtins(size)
    with upstream() as base_url, asyncio.Runner() as runner:
        bare = Bare(base_url, size.at_once, runner)
        try:
            with Daemon(_mapping(base_url, size.at_once), where.place) as daemon, daemon.client() as client:
                for answer, path in ANSWERS.items():
                    yield from _figures(answer, _runs(client, bare, answer, path, size), settings)
                yield from connector_cancel.figures(client, base_url, size.cancels)
        finally:
            bare.close()


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """A server, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "empd.bench.upstream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # made before this process has a second thread
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = server.stdout.readline().decode().strip()
        if not port:
            raise BenchError("the server behind the connector did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stdin.close()
        server.stdout.close()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _mapping(base_url: str, at_once: int) -> dict[str, Any]:
    services = {
        answer: {
            "connector": "RestSyncConnector",
            "api_config": {"base_url": base_url, "endpoint": path, "body": "{payload}"},
        }
        for answer, path in ANSWERS.items()
    }
    services |= connector_cancel.services(base_url)
    worker = {"services": list(services), "is_gpu_bound": False, "instances": 1, "max_concurrent_jobs": at_once}
    return {"workers": {"http": worker}, "services": services}


class Bare:
    """The least that asks the server: one session, so many loops."""

    def __init__(self, base_url: str, at_once: int, runner: asyncio.Runner) -> None:
        self._base_url = base_url
        self._at_once = at_once
        self._runner = runner
        self._session: aiohttp.ClientSession = runner.run(self._open())

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=self._at_once))

    def run(self, path: str, count: int) -> float:
        """Requests/s of `count`."""
        begun_s = time.perf_counter()
        self._runner.run(self._all(path, count))
        return count / (time.perf_counter() - begun_s)

    def alone_us(self, path: str) -> float:
        """One request; µs."""
        return 1e6 / self.run(path, 1)

    async def _all(self, path: str, count: int) -> None:
        left = iter(range(count))
        await asyncio.gather(*(self._loop(path, left) for _ in range(min(self._at_once, count))))

    async def _loop(self, path: str, left: Iterator[int]) -> None:
        for number in left:
            async with self._session.post(self._base_url + path, json={"number": number}) as answer:
                if (await answer.json()) != {"ok": True}:
                    raise BenchError(f"{path} answers something else")

    def close(self) -> None:
        """Ends the session."""
        self._runner.run(self._session.close())


def _runs(client: Client, bare: Bare, answer: str, path: str, size: Size) -> dict[str, list[float]]:
    runs: dict[str, list[float]] = {"empd": [], "bare": [], "added": []}
    _through(client, answer, size.at_once)
    bare.run(path, size.at_once)
    for _ in range(size.runs):
        runs["bare"].append(bare.run(path, size.jobs))
        runs["empd"].append(_through(client, answer, size.jobs))
        pairs = [(job_us(client, answer, 10), bare.alone_us(path)) for _ in range(size.alone)]
        runs["added"].append(median(job for job, _ in pairs) - median(request for _, request in pairs))
    return runs


def _through(client: Client, answer: str, count: int) -> float:
    begun_s = time.perf_counter()
    jobs = client.submit_many(answer, ({"number": number} for number in range(count)))
    deque(jobs.as_completed(TIMEOUT_S), maxlen=0)
    took_s = time.perf_counter() - begun_s
    failed = [failure for job in jobs if (failure := job.failure())]
    if failed:
        raise BenchError(f"{len(failed)} of {count} jobs failed: {failed[0]}")
    return count / took_s


def _figures(answer: str, runs: dict[str, list[float]], settings: dict[str, Any]) -> Iterator[Figure]:
    for way in ("empd", "bare"):
        axes = {"answer": answer, "way": way, "of": "rate"}
        yield median_of(f"connector.{answer}.{way}", "jobs/s", runs[way], axes=axes, settings=settings)
    ratios = [one / two for one, two in zip(runs["empd"], runs["bare"], strict=True)]
    yield median_of(f"connector.{answer}.to_bare", "ratio", ratios, target=TARGETS.get(answer), settings=settings)
    yield median_of(f"connector.{answer}.added", "µs", runs["added"], settings=settings)
