"""The worker under the real broker and supervisor: what crosses the seam between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from empd.errors import JobCancelled, JobDead, JobFailed
from empd.lifecycle import evidence_path
from tests.box import Box, is_alive, mapping_of, service, wait_until

HERE = str(Path(__file__).parent)


def python(name: str, worker: dict[str, Any] | None = None, **entry: Any) -> Any:
    api_config = {"callable": f"operators_module:{name}", **entry.pop("api_config", {})}
    return service("PythonConnector", worker=worker, api_config=api_config, **entry)


def counted(directory: Path) -> int:
    return len(list(directory.iterdir()))


def test_every_kind_of_callable_and_large_values_through_the_daemon(box: Callable[..., Box]) -> None:
    daemon = box(
        mapping_of(
            square=python("square"),
            pooled=python("square", worker={"max_concurrent_jobs": 3}),
            aio=python("square_async", worker={"max_concurrent_jobs": 8}),
            count=python("counting_async"),
            large=python("large"),
        ),
        python_path=HERE,
    )
    with daemon.client() as client:
        values = [{"x": n} for n in range(40)]
        assert list(client.submit_many("square", values).results(60)) == [{"value": n * n} for n in range(40)]
        assert list(client.submit_many("pooled", values).results(60)) == [{"value": n * n} for n in range(40)]
        assert list(client.submit_many("aio", values).results(60)) == [n * n for n in range(40)]
        assert client.submit("count", 5).result(60) == {"counted": 5}
        assert bytes(client.submit("large", 5 << 20).result(60)) == b"z" * (5 << 20)


@pytest.mark.parametrize("slots", [1, 2])
def test_what_callables_print_leaves_the_records_of_the_log_whole(box: Callable[..., Box], slots: int) -> None:
    daemon = box(
        mapping_of(
            s=service("PythonConnector", worker={"max_concurrent_jobs": slots}, api_config={"callable": "tasks:chatty"})
        )
    )
    with daemon.client() as client:
        for stream in ("stdout", "stderr", "stdout"):
            client.submit("s", stream).result(60)
    daemon.stop()
    records = [json.loads(line) for line in daemon.log().splitlines() if '"timestamp"' in line]
    assert len([record for record in records if record["event"] == "job_completed"]) == 3
    assert daemon.log().count("half a line on") == 3


@pytest.mark.parametrize(
    ("target", "entry"),
    [("nap_async", {}), ("attentive", {}), ("nap_generator", {}), ("nap", {"isolation": "process"})],
)
def test_cancel_reaches_the_work(box: Callable[..., Box], tmp_path: Path, target: str, entry: Any) -> None:
    daemon = box(mapping_of(s=python(target, **entry)), python_path=HERE)
    with daemon.client() as client:
        handle = client.submit("s", str(tmp_path))
        wait_until((tmp_path / "began").exists, "the job's begin")
        worker = daemon.pid("s-0")
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(60)
        assert daemon.pid("s-0") == worker, "nobody had to be killed for it"


def test_a_call_that_cannot_be_stopped_costs_its_worker(box: Callable[..., Box], tmp_path: Path) -> None:
    daemon = box(mapping_of(s=python("nap")), python_path=HERE, cancel_grace_s=0.5, term_grace_s=0.5)
    with daemon.client() as client:
        handle = client.submit("s", str(tmp_path))
        wait_until((tmp_path / "began").exists, "the job's begin")
        worker = daemon.pid("s-0")
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(30)
        assert wait_until(lambda: daemon.pid("s-0") != worker, "the successor")


@pytest.mark.parametrize("fault", ["crash", "segv", "abort"])
def test_a_crash_is_charged_and_ends_as_a_dead_letter(box: Callable[..., Box], fault: str) -> None:
    daemon = box(mapping_of(s=service(), other=service(api_config={"duration_s": 1.5})))
    with daemon.client() as client:
        neighbour = client.submit("other", None)
        handle = client.submit("s", {"fault": fault})
        once = client.submit("s", {"fault": fault, "times": 1})
        with pytest.raises(JobDead):
            handle.result(30)
        assert once.result(30) == {"steps": 1}
        assert neighbour.result(30) == {"steps": 1}
        assert neighbour.status().attempts <= 1


def test_a_held_gil_ends_at_the_run_limit(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(s=service()), cancel_grace_s=0.3, term_grace_s=0.3, retries=0)
    with daemon.client() as client:
        handle = client.submit("s", {"fault": "hang_gil"}, timeout_s=0.5)
        with pytest.raises(JobFailed) as failed:
            handle.result(30)
        assert failed.value.failure in ("timeout", "worker_hung")
        assert client.submit("s", None).result(30) == {"steps": 1}


def test_a_claim_outlives_the_broker_twice_and_runs_once(box: Callable[..., Box], tmp_path: Path) -> None:
    daemon = box(mapping_of(s=python("touch_then_nap", worker={"max_concurrent_jobs": 4})), python_path=HERE)
    with daemon.client() as client:
        jobs = client.submit_many("s", [{"dir": str(tmp_path), "s": 3.0}] * 4)
        wait_until(lambda: counted(tmp_path) == 4, "all jobs begun")
        for _ in range(2):
            old = daemon.signal("broker", signal.SIGKILL)
            wait_until(lambda old=old: daemon.pid("broker") != old, "the next broker")
            wait_until(daemon.is_ready, "the broker to answer")
        assert list(jobs.results(60)) == ["rested"] * 4
        assert counted(tmp_path) == 4, "no job ran twice"


def test_a_checkpoint_outlives_the_worker(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(s=python("checkpoint_then_die")), python_path=HERE)
    with daemon.client() as client:
        assert client.submit("s", None).result(30) == [2, b"half way"]


def test_a_heavy_worker_is_replaced_and_nothing_is_lost(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(s=python("hoard", worker={"memory_max_bytes": 1})), python_path=HERE)
    with daemon.client() as client:
        first = daemon.pid("s-0")
        results = list(client.submit_many("s", [80, 1, 80]).results(60))
        assert len(results) == 3
        assert wait_until(lambda: daemon.pid("s-0") != first, "the successor")


def test_a_reload_rolls_workers_without_losing_a_job(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(s=service(worker={"instances": 2}, api_config={"duration_s": 0.05})))
    assert daemon.process is not None
    with daemon.client() as client:
        before = {daemon.pid("s-0"), daemon.pid("s-1")}
        jobs = client.submit_many("s", [None] * 60)
        os.kill(daemon.process.pid, signal.SIGHUP)
        assert list(jobs.results(60)) == [{"steps": 1}] * 60
        wait_until(lambda: not before & {daemon.pid("s-0"), daemon.pid("s-1")}, "both workers to be rolled")
        assert client.submit("s", None).result(60) == {"steps": 1}


def test_a_worker_that_is_asked_tells_where_its_jobs_wait(box: Callable[..., Box], tmp_path: Path) -> None:
    """The supervisor asks in this way before it ends one that hangs; its threads alone would show an idle loop."""
    daemon = box(mapping_of(s=python("nap_async")), python_path=HERE)
    with daemon.client() as client:
        handle = client.submit("s", str(tmp_path))
        wait_until((tmp_path / "began").exists, "the job's begin")
        (child,) = [
            child
            for child in json.loads((daemon.runtime_dir / "supervisor.json").read_text())["children"]
            if child["name"] == "s-0"
        ]
        path = evidence_path(daemon.runtime_dir, child["generation"])
        daemon.signal("s-0", signal.SIGUSR1)
        wait_until(lambda: path.exists() and " in nap_async\n" in path.read_text(), "the job's function")
        assert "most recent call first" in path.read_text()
        assert is_alive(child["pid"])
        handle.cancel()


def test_jobs_go_to_the_worker_that_has_their_model_loaded(box: Callable[..., Box]) -> None:
    mapping = mapping_of(s=service("Loaded", worker={"instances": 3}))
    mapping["connectors"] = {"Loaded": {"path": "operators_module:Loaded"}}
    daemon = box(mapping, python_path=HERE)
    with daemon.client() as client:
        wait_until(lambda: client.status()["services"]["s"]["slots"] == 3, "all three to be free")
        for number in (0, 1, 2) * 3:
            # One at a time: all three are free, and any of them would be as good.
            assert client.submit("s", None, model_keys=[f"s-{number}"]).result(60) == f"s-{number}"
    arguments = [sys.executable, "-m", "empd", "submit", "s", "--model", "s-1", "--wait"]
    arguments += ["--endpoint", f"ipc://{daemon.runtime_dir}/empd.sock"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == "s-1"
