"""The client against the real daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_daemon import Daemon, running

from empd.client import AsyncClient, Client
from empd.errors import FailureClass, JobCancelled, JobFailed, Refused
from empd.wire.frames import Rows


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for the tests of this module."""
    folder = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    with running(folder) as started:
        yield started
    shutil.rmtree(folder)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as connected:
        yield connected


def test_jobs_go_in_and_results_come_out(client: Client) -> None:
    assert client.submit("echo", {"x": [1, "ü"]}).result(60) == {"x": [1, "ü"]}
    assert client.submit_many("echo", range(3_000)).results(60) == list(range(3_000))
    singles = [client.submit("echo", n) for n in range(500)]
    assert [handle.result(60) for handle in singles] == list(range(500))


def test_large_values_travel_through_the_arena(client: Client) -> None:
    large = os.urandom(4 << 20)
    assert client.submit("echo", large).result(60) == large


def test_failures_name_their_class(client: Client) -> None:
    with pytest.raises(JobFailed, match="this job cannot be done"):
        client.submit("broken", 1).result(60)
    with pytest.raises(Refused) as caught:
        client.submit("nobody-offers-this", 1).result(60)
    assert caught.value.failure is FailureClass.UNMATCHABLE
    with pytest.raises(Refused) as caught:
        client.submit("echo", 1, priority=1_000).result(60)
    assert caught.value.failure is FailureClass.INVALID_INPUT


def test_events_status_and_cancel(client: Client) -> None:
    states = [status.state for status in client.submit("slow", 0.3).events()]
    assert states[-1] == "completed"
    assert "assigned" in states
    delayed = client.submit("echo", 1, not_before=4_000_000_000.0, labels={"test": "cancel"})
    assert delayed.status().state == "delayed"
    assert [job.id for job in client.jobs(labels={"test": "cancel"})] == [delayed.number]
    assert client.cancel(labels={"test": "cancel"}, dry_run=True) == {"would_cancel": [delayed.id]}
    assert delayed.cancel() is True
    assert isinstance(delayed.exception(10), JobCancelled)


def test_a_key_makes_one_job_of_many(client: Client, daemon: Daemon) -> None:
    handles = [client.submit("slow", 0.2, idempotency_key="once") for _ in range(3)]
    with Client(daemon.endpoint) as other:
        theirs = other.submit("slow", 0.2, idempotency_key="once")
        assert len({handle.result(60) for handle in [*handles, theirs]}) == 1
        assert len({handle.number for handle in [*handles, theirs]}) == 1


def test_any_job_can_be_looked_up(client: Client, daemon: Daemon) -> None:
    done, running_job = client.submit("echo", "old"), client.submit("slow", 0.3)
    assert done.result(60) == "old"
    with Client(daemon.endpoint) as other:
        assert other.job(done.id).result(60) == "old"
        assert other.job(running_job.id).result(60) == running_job.result(60)
        with pytest.raises(Refused) as caught:
            other.job(77 << 32)
        assert caught.value.failure is FailureClass.NOT_FOUND


def test_drain_and_resume(client: Client) -> None:
    client.operate("drain")
    handle = client.submit("echo", 1)
    assert handle.accepted(10)
    assert client.status()["drained"]
    assert handle.status().state == "waiting"
    client.operate("resume")
    assert handle.result(60) == 1
    with pytest.raises(Refused, match="is not a verb"):
        client.operate("dance")


def test_the_journal_can_be_followed(client: Client) -> None:
    rows = client.subscribe("", 1)
    handle = client.submit("echo", 1)
    seen = 0
    for frame in rows:
        seen += len(frame.rows) if isinstance(frame, Rows) else 0
        if seen and handle.done():
            break
    assert seen


def test_the_async_client(daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            handles = [await client.submit("echo", n) for n in range(500)]
            assert await asyncio.gather(*[handle.result(60) for handle in handles]) == list(range(500))
            jobs = await client.submit_many("echo", range(1_000))
            assert await jobs.results(60) == list(range(1_000))
            assert (await client.status())["workers"]

    asyncio.run(asyncio.wait_for(main(), 40))


def test_a_killed_broker_loses_and_doubles_nothing(client: Client, daemon: Daemon) -> None:
    """SIGKILL three times while a window of jobs is on its way."""
    stop = threading.Event()

    def kill() -> None:
        for _ in range(3):
            stop.wait(0.3)
            with Client(daemon.endpoint, connect_timeout_s=20) as other:
                daemon.kill_broker(other)

    killer = threading.Thread(target=kill)
    killer.start()
    submitted = 0
    while killer.is_alive():
        values = range(submitted, submitted + 2_000)
        assert client.submit_many("echo", values).results(40) == list(values)
        assert client.submit("echo", submitted).result(40) == submitted
        submitted += 2_000
    killer.join()
    assert client.submit("echo", "after").result(40) == "after"
