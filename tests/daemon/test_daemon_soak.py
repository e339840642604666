"""Several clients at both doors while the daemon is killed, stopped, reloaded and drained, whole and in parts: every
job that was acknowledged ends once, with the result of its own payload."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, NamedTuple

import pytest
from daemon_journal import completions

from empd import Client
from empd.errors import EmpdError, JobCancelled
from empd.job import format_id
from tests.box import Box, mapping_of, service, wait_until

FAULTS = 20
CUSTOMERS = 3
END_S = 120.0
OPTIONS: dict[str, Any] = {"timeout_s": 20, "retries": 100}
BLOB_BYTES = (10, 1_000, 70_000, 300_000, 2_000_000)
DEADLY = ("crash", "segv", "abort")


def soak_mapping() -> dict[str, Any]:
    return mapping_of(
        many=service(
            worker={"instances": 2, "max_concurrent_jobs": 32}, api_config={"duration_s": 0.005, "echo": True}
        ),
        one=service(worker={"instances": 2}, api_config={"duration_s": 0.002}),
        crc=service(
            "PythonConnector",
            worker={"instances": 2, "max_concurrent_jobs": 4},
            api_config={"callable": "tasks:checksum"},
        ),
    )


class Sent(NamedTuple):
    """A job that may have been acknowledged, and what its result has to be; None: any. `job` is a handle, or an id."""

    job: Any
    expected: Any = None
    may_be_cancelled: bool = False

    @property
    def acknowledged(self) -> bool:
        return isinstance(self.job, str) or self.job.batch is None

    @property
    def id(self) -> str:
        return self.job if isinstance(self.job, str) else self.job.id


class Customer(threading.Thread):
    """Submits one thing after another until `over`; opens a new client whenever the daemon did not answer the last."""

    def __init__(self, daemon: Box, seed: int, over: threading.Event) -> None:
        super().__init__(name=f"customer {seed}")
        self.sent: list[Sent] = []
        self.same_key: list[tuple[Any, Any]] = []
        self.error: BaseException | None = None
        self._daemon = daemon
        self._chance = random.Random(seed)
        self._over = over

    def run(self) -> None:
        try:
            while not self._over.is_set():
                with contextlib.suppress(EmpdError), self._daemon.client(connect_timeout_s=30) as client:
                    for _ in range(self._chance.randrange(1, 60)):
                        self._chance.choice(self.orders())(client)
                        if self._over.wait(self._chance.random() * 0.1):
                            break
        except BaseException as error:  # the test shows it
            self.error = error

    def orders(self) -> list[Callable[[Client], None]]:
        return [self.several, self.short, self.bytes_of_any_size, self.twice_under_one_key, self.cancelled, self.deadly]

    def several(self, client: Client) -> None:
        payloads = [{"n": self._chance.randrange(1000)} for _ in range(self._chance.choice((1, 5, 60)))]
        handles = client.submit_many("many", payloads, priority=self._chance.randrange(101), **OPTIONS)
        self.sent += [Sent(handle, echo(payload)) for handle, payload in zip(handles, payloads, strict=True)]

    def short(self, client: Client) -> None:
        later = time.time() + self._chance.random()
        self.sent.append(Sent(client.submit("one", {}, not_before=later, **OPTIONS)))

    def bytes_of_any_size(self, client: Client) -> None:
        data = self._chance.randbytes(self._chance.choice(BLOB_BYTES))
        expected = {"bytes": len(data), "crc32": zlib.crc32(data)}
        self.sent.append(Sent(client.submit("crc", data, **OPTIONS), expected))

    def twice_under_one_key(self, client: Client) -> None:
        key = f"{self.name} {self._chance.randrange(1 << 40)}"
        first, second = (client.submit("many", {"k": key}, idempotency_key=key, **OPTIONS) for _ in range(2))
        self.sent.append(Sent(first, echo({"k": key})))
        self.same_key.append((first, second))

    def cancelled(self, client: Client) -> None:
        handle = client.submit("one", {"duration_s": 5}, **OPTIONS)
        self.sent.append(Sent(handle, may_be_cancelled=True))
        handle.cancel()

    def deadly(self, client: Client) -> None:
        payload = {"fault": self._chance.choice(DEADLY), "times": 1}
        self.sent.append(Sent(client.submit("one", payload, **OPTIONS)))


class HttpCustomer(Customer):
    """The same over HTTP: what it was given ids for."""

    def run(self) -> None:
        try:
            while not self._over.wait(self._chance.random() * 0.2):
                with contextlib.suppress(OSError, ValueError, HTTPException):  # nobody there, or it broke off
                    self.post()
        except BaseException as error:  # the test shows it
            self.error = error

    def post(self) -> None:
        base = "http://" + (self._daemon.runtime_dir / "http").read_text().strip()
        payloads = [{"h": self._chance.randrange(1000)} for _ in range(3)]
        jobs = [{"service": "many", "payload": payload, **OPTIONS} for payload in payloads]
        with urllib.request.urlopen(f"{base}/v1/jobs", json.dumps(jobs).encode(), timeout=20) as answer:
            rows = json.load(answer)["jobs"]
        self.sent += [
            Sent(row["id"], echo(payload)) for row, payload in zip(rows, payloads, strict=True) if "id" in row
        ]
        for path in ("/v1/status", "/metrics", "/v1/jobs?limit=5"):
            with urllib.request.urlopen(base + path, timeout=20) as answer:
                answer.read()


def echo(payload: Any) -> dict[str, Any]:
    return {"steps": 1, "echo": payload}


class Chaos:
    """What befalls the daemon."""

    def __init__(self, daemon: Box, chance: random.Random) -> None:
        self._daemon = daemon
        self._chance = chance
        rare = (self.reload, self.drain, self.stopped_broker, self.every_worker, self.kill_all, self.restart)
        self.faults = (*(self.worker,) * 4, *(self.broker,) * 2, self.web, self.stopped_worker, *rare)

    def strike(self) -> None:
        instant_s = time.monotonic() + self._chance.random()
        wait_until(lambda: time.monotonic() >= instant_s, "a random instant")
        self._chance.choice(self.faults)()

    def worker(self, number: int = signal.SIGKILL) -> None:
        if names := self._workers():
            self._daemon.signal(self._chance.choice(names), number)

    def stopped_worker(self) -> None:
        self.worker(signal.SIGSTOP)

    def broker(self) -> None:
        self._daemon.signal("broker")

    def stopped_broker(self) -> None:
        pid = self._daemon.signal("broker", signal.SIGSTOP)
        until_s = time.monotonic() + self._chance.random()
        wait_until(lambda: time.monotonic() >= until_s, "the end of a stop")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def web(self) -> None:
        self._daemon.signal("web")

    def every_worker(self) -> None:
        for name in self._workers():
            self._daemon.signal(name)
        self._daemon.signal("broker")

    def reload(self) -> None:
        assert self._daemon.process is not None
        self._daemon.process.send_signal(signal.SIGHUP)

    def drain(self) -> None:
        self._command("drain")
        wait_until(lambda: self._command("resume") == 0, "a resume")

    def kill_all(self) -> None:
        self._daemon.kill()
        self._daemon.start(wait=False)

    def restart(self) -> None:
        assert self._daemon.stop() == 0
        self._daemon.start(wait=False)

    def _workers(self) -> list[str]:
        return sorted(name for name in self._daemon.children() if name.rpartition("-")[0] in ("many", "one", "crc"))

    def _command(self, name: str) -> int:
        endpoint = f"ipc://{self._daemon.runtime_dir}/empd.sock"
        command = [sys.executable, "-m", "empd", name, "--endpoint", endpoint]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.timeout(400)
@pytest.mark.parametrize("durability", ["fsync", "memory"])
def test_whatever_befalls_the_daemon_each_job_has_its_own_result(box: Callable[..., Box], durability: str) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown by pytest when the test fails
    daemon = box(
        soak_mapping(), durability=durability, max_crashes=1000, backoff_s=0.05, backoff_max_s=0.2,
        cancel_grace_s=0.3, term_grace_s=0.3, drain_s=3,
    )  # fmt: skip
    over = threading.Event()
    customers = [Customer(daemon, seed + number, over) for number in range(CUSTOMERS)]
    customers.append(HttpCustomer(daemon, seed + CUSTOMERS, over))
    for customer in customers:
        customer.start()
    try:
        chaos = Chaos(daemon, random.Random(seed))
        for _ in range(FAULTS):
            chaos.strike()
    finally:
        over.set()
        for customer in customers:
            customer.join(END_S)
    assert [customer.error for customer in customers] == [None] * len(customers)
    assert not any(customer.is_alive() for customer in customers)

    wait_until(daemon.is_ready, "all workers")
    with daemon.client() as client:
        acknowledged = [sent for customer in customers for sent in customer.sent if sent.acknowledged]
        assert len(acknowledged) > FAULTS
        for sent in acknowledged:
            ends_as_it_should(client, sent)
        for customer in customers:
            assert all(a.id == b.id for a, b in customer.same_key if a.batch is None and b.batch is None)
        wait_until(lambda: not client.status()["jobs"]["unfinished"], "an idle daemon")
        ended = completions(client)
        assert {sent.id for sent in acknowledged} <= {format_id(number) for number in ended}
        assert set(ended.values()) == {1}


def ends_as_it_should(client: Client, sent: Sent) -> None:
    try:
        result = client.job(sent.id).result(END_S)
    except JobCancelled:
        assert sent.may_be_cancelled, f"nobody cancelled {sent.id}"
    else:
        assert sent.expected is None or result == sent.expected
