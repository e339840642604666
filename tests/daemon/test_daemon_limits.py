"""The limits that a whole daemon keeps: times, budgets, order, hangs, drains, and what large values leave behind."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from empd import Client
from empd.client.jobs import JobHandle
from empd.errors import FailureClass, JobDead, JobExpired, JobFailed, Refused
from empd.job import format_id
from empd.settings import Settings
from tests.box import Box, is_alive, mapping_of, service, wait_until

PAYLOAD_BYTES = 8 << 20


def python(name: str, worker: dict[str, Any] | None = None, **entry: Any) -> Any:
    """A service of one of the operators' callables."""
    return service("PythonConnector", worker=worker, api_config={"callable": f"tasks:{name}"}, **entry)


class Gated:
    """Payload and trace of `tasks:gated`: each job leaves a line when it begins, and ends once the gate is there."""

    def __init__(self, directory: Path) -> None:
        self.file, self.gate = directory / "executions", directory / "gate"
        self.payload = {"file": str(self.file), "gate": str(self.gate)}

    def began(self) -> list[str]:
        """The jobs in the order in which they began."""
        return [format_id(int(line)) for line in self.file.read_text().split()] if self.file.exists() else []

    def block(self, client: Client, service_name: str = "gated") -> JobHandle:
        """A job that has begun, and holds its slot until the gate is opened."""
        job = client.submit(service_name, self.payload)
        wait_until(lambda: job.id in self.began(), "the job to begin")
        return job

    def open(self) -> None:
        self.gate.touch()


@pytest.fixture
def gated(tmp_path: Path) -> Gated:
    return Gated(tmp_path)


def ended_with(job: JobHandle) -> JobFailed:
    """How the job failed."""
    failure = job.exception(30)
    assert isinstance(failure, JobFailed), failure
    return failure


# --- the queue's bound, times, order ---


def test_a_full_queue_refuses_and_takes_jobs_again(box: Callable[..., Box], gated: Gated) -> None:
    daemon = box(mapping_of(gated=python("gated")), queue_jobs_max=10)
    with daemon.client() as client:
        jobs = client.submit_many("gated", [gated.payload] * 10)
        assert all(job.accepted(10) for job in jobs)
        one_more = client.submit("gated", gated.payload)
        assert not one_more.accepted(10)
        refused = one_more.failure()
        assert isinstance(refused, Refused)
        assert refused.failure is FailureClass.UNAVAILABLE
        assert "queue_jobs_max" in refused.reason
        assert refused.retry_after_s is not None
        assert refused.retry_after_s > 0
        gated.open()
        assert len(jobs.results(60)) == 10
        assert client.submit("gated", gated.payload).exception(20) is None


def test_a_job_may_run_wait_and_live_only_so_long(box: Callable[..., Box], gated: Gated) -> None:
    daemon = box(mapping_of(gated=python("gated"), slow=python("slow", {"instances": 2})), drain_s=1)
    with daemon.client() as client:
        gated.block(client)
        long_run = client.submit("slow", {"seconds": 6}, timeout_s=0.4, retries=0)
        long_life = client.submit("slow", {"seconds": 6}, total_timeout_s=0.4)
        long_wait = client.submit("gated", gated.payload, queue_timeout_s=0.3)
        never_begun = client.submit("gated", gated.payload, total_timeout_s=0.3)
        patient = client.submit("gated", gated.payload, queue_timeout_s=60, total_timeout_s=60)

        timed_out = ended_with(long_run)
        assert timed_out.failure is FailureClass.TIMEOUT
        assert not isinstance(timed_out, JobExpired)
        assert long_run.status().attempts == 1
        for job, attempts in ((long_life, 1), (long_wait, 0), (never_begun, 0)):
            expired = ended_with(job)
            assert isinstance(expired, JobExpired)
            assert expired.failure is FailureClass.EXPIRED
            assert job.status().attempts == attempts
        gated.open()
        assert patient.exception(20) is None
        assert not {long_wait.id, never_begun.id} & set(gated.began())


def test_retries_wait_longer_each_time_and_are_counted(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(s=service()), backoff_s=0.2)
    with daemon.client() as client:
        begun_s = time.monotonic()
        cured = client.submit("s", {"fault": "fail", "times": 2})
        hopeless = client.submit("s", {"fault": "fail"}, retries=1)
        assert cured.exception(20) is None
        assert time.monotonic() - begun_s >= 0.2 + 0.4
        assert cured.status().attempts == 3
        failed = ended_with(hopeless)
        assert not isinstance(failed, JobDead)
        assert "simulated failure" in failed.message
        assert hopeless.status().attempts == 2


def test_a_job_is_not_begun_before_its_time(box: Callable[..., Box]) -> None:
    with box().client() as client:
        at_s = time.time() + 0.8
        later, now = client.submit("noop", {}, not_before=at_s), client.submit("noop", {})
        assert now.exception(10) is None
        assert later.status().state == "delayed"
        assert later.exception(10) is None
        assert later.status().started_ns >= int(at_s * 1e9)


def test_one_slot_takes_the_most_urgent_first(box: Callable[..., Box], gated: Gated) -> None:
    with box(mapping_of(gated=python("gated"))).client() as client:
        first = gated.block(client)
        waiting = [client.submit("gated", gated.payload, priority=p) for p in (10, 90, 50, 90, 0, 100)]
        assert client.flush(10)
        gated.open()
        assert [job.exception(20) for job in waiting] == [None] * len(waiting)
        assert gated.began() == [first.id, *(waiting[n].id for n in (5, 1, 3, 2, 0, 4))]


# --- hangs and crashes ---


def test_a_job_that_cannot_be_stopped_is_dead_lettered_with_its_stacks(box: Callable[..., Box], gated: Gated) -> None:
    mapping = mapping_of(deaf=service(), gil=service(), gated=python("gated"))
    daemon = box(mapping, cancel_grace_s=0.5, term_grace_s=0.5, max_crashes=2)
    with daemon.client() as client:
        neighbour = gated.block(client)
        neighbours_pid = daemon.pid("gated-0")
        deaf = client.submit("deaf", {"fault": "hang"}, timeout_s=0.4)
        gil = client.submit("gil", {"fault": "hang_gil"}, timeout_s=0.4)
        for job, worker in ((deaf, "deaf-0"), (gil, "gil-0")):
            dead = ended_with(job)
            assert isinstance(dead, JobDead)
            assert dead.failure is FailureClass.WORKER_HUNG
            assert f"worker {worker} hung" in dead.message
            assert worker in dead.evidence
            assert "most recent call first" in dead.evidence, dead.evidence
            assert job.status().attempts == 2
        assert "simulation.py" in ended_with(gil).evidence
        # The workers are there again, and the neighbour has noticed nothing.
        assert client.submit("deaf", {}).exception(20) is None
        assert client.submit("gil", {}).exception(20) is None
        gated.open()
        assert neighbour.result(60) == {"pid": str(neighbours_pid)}
        assert neighbour.status().attempts == 1


def test_a_stopped_worker_is_killed_and_its_job_runs_elsewhere(box: Callable[..., Box], gated: Gated) -> None:
    daemon = box(mapping_of(gated=python("gated", {"instances": 2})), cancel_grace_s=0.5, term_grace_s=0.5)
    with daemon.client() as client:
        job = client.submit("gated", gated.payload, timeout_s=1.0)
        wait_until(gated.began, "the job to begin")
        worker = job.status().worker
        stopped = daemon.signal(worker, signal.SIGSTOP)
        gated.open()
        assert job.result(60)["pid"] != str(stopped)
        assert gated.began() == [job.id] * 2
        wait_until(lambda: not is_alive(stopped), "the stopped worker to be gone")
        assert daemon.pid(worker) != stopped


def test_a_job_that_kills_its_workers_is_set_aside_until_somebody_retries_it(box: Callable[..., Box]) -> None:
    with box(mapping_of(s=service()), max_crashes=2).client() as client:
        job = client.submit("s", {"fault": "crash", "times": 2})
        dead = ended_with(job)
        assert isinstance(dead, JobDead)
        assert dead.failure is FailureClass.WORKER_CRASHED
        assert "s-0" in dead.message
        assert "signal 9" in dead.evidence
        assert [one.id for one in client.jobs(states=["dead"])] == [job.number]
        assert client.retry([job])["retried"] == [job.id]
        # To another client of the same daemon the job has not ended yet.
        with Client(client.endpoint) as another:
            again = another.job(job.id)
            assert again.result(60) == {"steps": 1}
            assert again.status().attempts == 3
        assert list(client.jobs(states=["dead"])) == []


# --- drain, stop, reload ---


def test_drain_lets_run_what_runs_and_resume_goes_on(box: Callable[..., Box], gated: Gated) -> None:
    daemon = box(mapping_of(gated=python("gated"), noop=service(worker={"instances": 2})))
    with daemon.client() as client:
        running = gated.block(client)
        client.operate("drain")
        waiting = client.submit("noop", {})
        assert waiting.accepted(10)
        gated.open()
        assert running.exception(10) is None
        status = client.status()
        assert any("drain" in problem for problem in status["problems"])
        assert waiting.status().state == "waiting"
        assert "drain" in waiting.status().reason
        client.operate("resume")
        assert waiting.exception(10) is None
        # One worker alone: the other one takes what comes.
        client.operate("drain", ["noop-0"])
        jobs = client.submit_many("noop", [{}] * 20)
        assert len(jobs.results(60)) == 20
        assert {job.status().worker for job in jobs} == {"noop-1"}
        client.operate("resume", ["noop-0"])
        assert client.status()["problems"] == []


def test_sigterm_lets_the_running_job_end_and_keeps_the_waiting_one(box: Callable[..., Box], gated: Gated) -> None:
    daemon = box(mapping_of(gated=python("gated")), drain_s=20)
    assert daemon.process is not None
    with daemon.client() as client:
        running = gated.block(client)
        waiting = client.submit("gated", gated.payload)
        assert waiting.accepted(10)
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in state_of(daemon), "the worker to drain")
        assert daemon.process.poll() is None
        gated.open()
        assert running.exception(20) is None
        assert daemon.process.wait(60) == 0
        assert gated.began() == [running.id]
        daemon.restart()
        assert waiting.exception(20) is None
        assert gated.began() == [running.id, waiting.id]
        assert running.status().attempts == 1


def state_of(daemon: Box) -> str:
    """The supervisor's own account, as text."""
    return (daemon.runtime_dir / "supervisor.json").read_text().lower()


def test_a_rolling_reload_fails_no_job(box: Callable[..., Box]) -> None:
    """Nor is one charged: none may be tried again at its own cost. What the broker assigned in the moment in which it
    was replaced may not have arrived; it is assigned again, which counts as an attempt that nobody is charged for."""
    worker = {"instances": 3, "max_concurrent_jobs": 2}
    daemon = box(mapping_of(s=service(worker=worker, api_config={"duration_s": 0.01})))
    assert daemon.process is not None
    names = [f"s-{n}" for n in range(3)]
    before = {daemon.pid(name) for name in names}
    with daemon.client() as client:
        jobs = [client.submit("s", {}, retries=0) for _ in range(20)]
        daemon.process.send_signal(signal.SIGHUP)
        while any(is_alive(pid) for pid in before):
            assert len(jobs) < 5000, "the reload does not end"
            jobs += [client.submit("s", {}, retries=0) for _ in range(20)]
            assert jobs[-1].exception(20) is None
        assert [job.exception(20) for job in jobs] == [None] * len(jobs)
        assert {job.status().attempts for job in jobs} <= {1, 2}
    assert {daemon.pid(name) for name in names}.isdisjoint(before)


# --- large values ---


@pytest.mark.parametrize("durability", ["fsync", "memory"])
def test_large_values_pass_and_no_payload_is_left(box: Callable[..., Box], durability: str) -> None:
    api_config = {"duration_s": 0, "echo": True}
    services = mapping_of(checksum=python("checksum"), echo=service(api_config=api_config))
    daemon = box(services, durability=durability)
    places = Settings(state_dir=daemon.state_dir, runtime_dir=daemon.runtime_dir)

    def blobs() -> list[Path]:
        """On the disk and in shared memory."""
        return [
            path for place in (places.spool_dir, places.volatile_dir) for path in place.rglob("*") if path.is_file()
        ]

    content = os.urandom(PAYLOAD_BYTES)
    with daemon.client() as client:
        known = {"bytes": len(content), "crc32": zlib.crc32(content)}
        assert client.submit_many("checksum", [content] * 4).results(60) == [known] * 4
        wait_until(lambda: not blobs(), "the payloads to go")
        job = client.submit("echo", content)
        assert bytes(job.result(30)["echo"]) == content
        # Results stay for as long as they can be asked for; of the payload nothing is left.
        wait_until(lambda: len(blobs()) == 1, "the payload to go")
        with daemon.client() as another:
            assert bytes(another.job(job.id).result(30)["echo"]) == content
