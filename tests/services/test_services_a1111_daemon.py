"""Automatic1111 in a whole daemon: the README's job, a worker that dies, a cancel."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from empd.errors import JobCancelled
from tests.box import Box, wait_until
from tests.doubles.a1111 import A1111Double, in_thread

SECTION = (
    (Path(__file__).resolve().parents[2] / "empd" / "connectors" / "README.md")
    .read_text()
    .partition("## Automatic1111\n")[2]
    .partition("\n## ")[0]
)


@pytest.fixture(scope="module")
def server() -> Iterator[A1111Double]:
    with in_thread(A1111Double()) as double:
        double.eta_s = 60.0
        yield double


@pytest.fixture(scope="module")
def daemon(server: A1111Double) -> Iterator[Box]:
    (mapping,) = re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)
    entry = json.loads(mapping.replace("7860", str(server.port)))
    entry["services"]["a1111"]["api_config"]["poll_interval_s"] = 0.05
    with Box(entry, gpus="virtual:1", backoff_s=0) as running:
        yield running


def test_the_readmes_job_runs_as_written(daemon: Box, server: A1111Double) -> None:
    (line,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    command = [*shlex.split(line)[1:], "--endpoint", f"ipc://{daemon.runtime_dir}/empd.sock"]
    done = subprocess.run(
        [sys.executable, "-m", "empd", *command], capture_output=True, text=True, check=True, timeout=60
    )
    result = json.loads(done.stdout)
    (image,) = result["images"]
    assert (image["seed"], result["steps"], result["sd_model_name"]) == (7, 25, "dream")
    with urllib.request.urlopen(daemon.http() + image["asset"]["url"]) as answer:
        assert answer.read().startswith(b"\x89PNG")
    assert server.bodies[-1]["prompt"] == "a lighthouse at dawn <lora:ink:0.8>"


def test_a_worker_that_dies_leaves_no_task_running_and_one_picture(daemon: Box, server: A1111Double) -> None:
    with daemon.client() as client:
        begun = len(server.started)
        handle = client.submit("a1111", {"prompt": "x", "steps": 100_000, "seed": 11})
        wait_until(lambda: len(server.started) > begun and server.step > 1, "the task to run")
        orphan = server.current
        server.steps_max = 5  # of tasks to come
        daemon.signal("a1111-gpu0")
        (image,) = handle.result(60)["images"]
        assert server.interrupts == [orphan]
    server.steps_max = None
    # One call of each attempt, the second after the first had ended; and the job says so.
    assert [body["force_task_id"] for body in server.bodies if body["seed"] == 11] == server.finished[-2:]
    said = job_log(daemon, handle.id)
    assert "had arrived and was interrupted" in said
    assert "may have arrived" not in said
    assets = [path.name for path in (daemon.state_dir / "assets").rglob("*.png") if handle.id in str(path)]
    assert assets == [image["asset"]["name"].rpartition("/")[2]]


def test_a_worker_killed_while_its_call_waits_hits_no_neighbour_and_shows_the_doubt(
    daemon: Box, server: A1111Double
) -> None:
    interrupts, neighbour = len(server.interrupts), "task(theirs)"
    server.page = False  # nobody can see what waits
    server.gate.clear()
    theirs = threading.Thread(target=post, args=(server, {"force_task_id": neighbour, "steps": 3}))
    theirs.start()
    try:
        with daemon.client() as client:
            wait_until(lambda: server.current == neighbour, "the neighbour's task")
            handle = client.submit("a1111", {"prompt": "x", "steps": 3, "seed": 12})
            wait_until(lambda: len(server.pending) == 1, "the call to wait")
            (orphan,) = server.pending
            daemon.signal("a1111-gpu0")
            wait_until(lambda: len(server.pending) == 2, "the successor's call")
            server.gate.set()
            assert len(handle.result(60)["images"]) == 1
            assert "may have arrived" in client.job(handle.id).status().doubt
    finally:
        server.page = True
        server.gate.set()
        theirs.join(60)
    assert neighbour in server.finished
    assert set(server.interrupts[interrupts:]) <= {orphan}
    wait_until(lambda: "may have arrived" in job_log(daemon, handle.id), "the doubt in the job's log")


def post(server: A1111Double, body: dict[str, object]) -> None:
    """Somebody else's call."""
    request = urllib.request.Request(f"{server.url}/sdapi/v1/txt2img", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert len(json.load(answer)["images"]) == 1


def job_log(daemon: Box, job: str) -> str:
    with urllib.request.urlopen(f"{daemon.http()}/v1/jobs/{job}/log", timeout=10) as answer:
        return str(answer.read().decode())


def test_a_cancelled_job_is_interrupted_at_the_server(daemon: Box, server: A1111Double) -> None:
    with daemon.client() as client:
        begun, interrupts = len(server.started), len(server.interrupts)
        handle = client.submit("a1111", {"steps": 100_000})
        wait_until(lambda: len(server.started) > begun and server.step > 1, "the task to run")
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(60)
        assert server.interrupts[interrupts:] == [server.started[begun]]
