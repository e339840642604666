"""What an acknowledged job survives: kill -9 of everything under each durability, and a disk that is full."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from empd.errors import FailureClass, JobDead, Refused
from empd.job import format_id
from tests.box import Box, mapping_of, service, wait_until

MIB = 1 << 20
WORKERS = 2


def gated_mapping(instances: int = WORKERS) -> dict[str, Any]:
    """Services whose executions can be counted: `gated` ones run until their gate is there."""
    workers = {"instances": instances}
    return mapping_of(
        gated=service("PythonConnector", worker=workers, api_config={"callable": "tasks:gated"}),
        counted=service("PythonConnector", api_config={"callable": "tasks:counted"}),
    )


def executions(path: Path) -> Counter[str]:
    """Job id → how often it was begun."""
    return Counter(format_id(int(line)) for line in path.read_text().split()) if path.exists() else Counter()


@pytest.mark.parametrize("durability", ["fsync", "os", "memory"])
def test_kill_9_of_everything_loses_nothing_that_was_acknowledged(
    box: Callable[..., Box], tmp_path: Path, durability: str
) -> None:
    daemon = box(gated_mapping(), durability=durability)
    file, gate = tmp_path / "executions", tmp_path / "gate"
    with daemon.client() as client:
        ended = client.submit_many("counted", [{"file": str(file)}] * 10)
        pids = [one["pid"] for one in ended.results(60)]
        jobs = client.submit_many("gated", [{"file": str(file), "gate": str(gate)}] * 100)
        assert client.flush(20)
        wait_until(lambda: len(executions(file)) == len(ended) + WORKERS, "a job in each worker")
        began = set(executions(file)) - {job.id for job in ended}

        daemon.kill()
        daemon.restart()
        wait_until(lambda: sum(executions(file).values()) == len(ended) + 2 * WORKERS, "jobs in the new workers")
        assert {job.id for job in jobs if job.ended} == set()
        gate.touch()
        assert len(jobs.results(60)) == len(jobs)

        counts = executions(file)
        assert {job.id: counts[job.id] for job in ended} == {job.id: 1 for job in ended}
        assert {job.id: counts[job.id] for job in jobs} == {job.id: 2 if job.id in began else 1 for job in jobs}
        assert {job.id: job.status().attempts for job in jobs} == {job.id: counts[job.id] for job in jobs}
        assert client.status()["jobs"]["unfinished"] == 0
    # Whoever comes later is told the same: what had ended before the crash, and what ended after it.
    with daemon.client() as another:
        assert [another.job(job.id).result(60)["pid"] for job in ended] == pids
        assert another.job(jobs[0].id).result(60) == jobs[0].result()


COUNTING = """
import os

def counting(call):
    def counted(fd):
        with open({path!r}, "a") as file:
            file.write(os.readlink(f"/proc/self/fd/{{fd}}") + "\\n")
        return call(fd)
    return counted

open({path!r}, "a").close()
os.fsync, os.fdatasync = counting(os.fsync), counting(os.fdatasync)
"""
SUBMITTING = """
import sys
from empd import Client
with Client(sys.argv[1]) as client:
    assert client.submit("noop", "x" * 100_000).result(60)["echo"] == "x" * 100_000
"""


@pytest.mark.parametrize(("durability", "synced"), [("fsync", True), ("os", False), ("memory", False)])
def test_large_payloads_and_results_are_synced_only_where_they_must_survive_a_power_loss(
    box: Callable[..., Box], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, synced: bool
) -> None:
    # Read by every Python process that is started from here on.
    (tmp_path / "sitecustomize.py").write_text(COUNTING.format(path=str(tmp_path / "synced")))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    daemon = box(durability=durability)
    subprocess.run([sys.executable, "-c", SUBMITTING, f"ipc://{daemon.runtime_dir}/empd.sock"], check=True, timeout=60)
    for path, body in (
        ("/v1/jobs?wait=30", b'{"service": "noop", "payload": "' + b"x" * 100_000 + b'"}'),
        ("/v1/blobs", b"x" * 100_000),
    ):
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(daemon.http() + path, body, headers), timeout=60) as answer:
            assert answer.status in (200, 201)
    spool = str(daemon.state_dir / "spool")
    files = {line for line in (tmp_path / "synced").read_text().splitlines() if line.startswith(f"{spool}/")}
    # Payload and result of the client's job, payload and result of the other, and the upload.
    assert len([path for path in files if path.endswith(".part")]) == (5 if synced else 0)
    assert bool(files) is synced


def test_jobs_of_a_program_that_died_with_the_daemon_end_too(box: Callable[..., Box], tmp_path: Path) -> None:
    daemon = box(gated_mapping())
    file, gate = tmp_path / "executions", tmp_path / "gate"
    with daemon.client() as client:
        jobs = client.submit_many("gated", [{"file": str(file), "gate": str(gate)}] * 20)
        assert client.flush(20)
        ids = [job.id for job in jobs]
        daemon.kill()
        client.close(0)
    gate.touch()
    daemon.restart()
    with daemon.client() as another:
        assert [another.job(one).exception(20) for one in ids] == [None] * len(ids)
    assert set(executions(file)) == set(ids)


def test_a_host_that_is_lost_too_often_is_charged_to_the_job_that_ran(box: Callable[..., Box], tmp_path: Path) -> None:
    daemon = box(gated_mapping(instances=1), max_host_losses=2)
    file, gate = tmp_path / "executions", tmp_path / "gate"
    with daemon.client() as client:
        running = client.submit("gated", {"file": str(file), "gate": str(gate)})
        assert running.accepted(10)
        for loss in (1, 2):
            wait_until(lambda loss=loss: executions(file)[running.id] == loss, "the job to run")  # type: ignore[misc]
            daemon.kill()
            daemon.restart()
        failed = running.exception(20)
        assert isinstance(failed, JobDead)
        assert failed.failure is FailureClass.HOST_LOST
        gate.touch()
        assert client.retry([running])["retried"] == [running.id]
        with daemon.client() as another:
            assert another.job(running.id).exception(20) is None


class Disk(NamedTuple):
    """A small disk: `home` of a daemon whose state is on it, the limit for its settings."""

    home: Path
    free_min_bytes: int
    fill_bytes: int

    @property
    def filler(self) -> Path:
        return self.home / "state" / "filler"

    def fill(self) -> None:
        """Takes all that is free, or `fill_bytes` of it."""
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            for _ in range(self.fill_bytes // MIB):
                file.write(bytes(MIB))


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A file system of its own where that can be mounted; else the limit is put just below what is free."""
    home = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    state = home / "state"
    state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(state)], capture_output=True, check=False
    )
    try:
        if mounted.returncode == 0:
            yield Disk(home, 16 * MIB, 64 * MIB)
        else:
            yield Disk(home, shutil.disk_usage(state).free - 128 * MIB, 256 * MIB)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(state)], check=True)
        shutil.rmtree(home)


def readiness(daemon: Box) -> tuple[int, str]:
    """Status and body of /readyz."""
    try:
        with urllib.request.urlopen(f"{daemon.http()}/readyz", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_full_disk_refuses_what_is_new_and_finishes_what_is_in(disk: Disk, tmp_path: Path) -> None:
    file, gate = tmp_path / "executions", tmp_path / "gate"
    with Box(gated_mapping(), home=disk.home, disk_free_min_bytes=disk.free_min_bytes) as daemon:
        with daemon.client() as client:
            payload = {"file": str(file), "gate": str(gate)}
            jobs = client.submit_many("gated", [payload] * 30)
            assert client.flush(20)
            wait_until(lambda: len(executions(file)) == WORKERS, "a job in each worker")

            disk.fill()
            wait_until(lambda: readiness(daemon)[0] == 503, "the daemon to notice")
            assert "disk_free_min_bytes" in readiness(daemon)[1]
            refused = wait_until(lambda: refusal_of(daemon, payload), "a refusal")
            assert refused is not None
            assert refused.failure is FailureClass.UNAVAILABLE
            assert refused.retry_after_s is not None
            assert refused.retry_after_s > 0
            assert "disk" in refused.reason

            gate.touch()
            assert len(jobs.results(60)) == len(jobs)
            assert set(executions(file)) >= {job.id for job in jobs}

            disk.filler.unlink()
            assert wait_until(lambda: readiness(daemon)[0] == 200, "the daemon to notice")
            wait_until(lambda: refusal_of(daemon, payload) is None, "a job to be accepted")
            wait_until(lambda: client.status()["jobs"]["unfinished"] == 0, "all jobs to end")
        # Nothing was torn while it was full.
        daemon.kill()
        daemon.restart()
        with daemon.client() as another:
            assert [another.job(job.id).exception(20) for job in jobs] == [None] * len(jobs)


def refusal_of(daemon: Box, payload: dict[str, str]) -> Refused | None:
    """How a job that is submitted now is refused; None when it is not."""
    with daemon.client() as client:
        job = client.submit("gated", payload)
        failure = None if job.accepted(10) else job.failure()
    assert failure is None or isinstance(failure, Refused)
    return failure
