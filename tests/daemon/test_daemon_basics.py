"""The whole daemon, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import pytest

from empd import Client
from empd.errors import Refused
from tests.box import Box, mapping_of, service, wait_until


def test_a_job_goes_in_and_its_result_comes_out(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        assert client.submit("noop", {"x": 1}).result(60) is not None
        jobs = client.submit_many("noop", [{"n": n} for n in range(1000)])
        assert len(list(jobs.results(60))) == 1000
        status = client.status()
        assert status["jobs"]["unfinished"] == 0
    assert daemon.stop() == 0


def test_an_operators_function_is_a_service(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(square=service("PythonConnector", api_config={"callable": "tasks:square"})))
    with daemon.client() as client:
        assert client.submit("square", {"x": 7}).result(60) == {"value": 49}


def test_a_service_that_nobody_runs_is_refused_at_once(box: Callable[..., Box]) -> None:
    with box().client() as client:
        handle = client.submit("no-such-service", {})
        with pytest.raises(Refused, match="no worker is configured for service 'no-such-service'") as refusal:
            handle.result(60)
        assert refusal.value.failure == "unmatchable"


def test_a_second_daemon_is_told_who_holds_the_state(box: Callable[..., Box]) -> None:
    daemon = box()
    assert daemon.process is not None
    second = Box(home=daemon.home)
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(60) != 0
    assert str(daemon.process.pid) in second.log()
    with daemon.client() as client:
        assert client.submit("noop", {}).result(60) is not None


def test_finished_jobs_are_found_in_history(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        handle = client.submit("noop", {"x": 1})
        handle.result(60)

        def in_history() -> bool:
            with urllib.request.urlopen(f"{daemon.http()}/v1/jobs/{handle.id}", timeout=30) as answer:
                body = json.load(answer)
                return bool(body["state"] == "completed")

        assert wait_until(in_history, "the job in history")
    with Client(f"ipc://{daemon.runtime_dir}/empd.sock") as another:
        assert another.job(handle.id).result(60) is not None


def test_help_and_version_need_no_daemon() -> None:
    for arguments in (["--help"], ["version"]):
        ended = subprocess.run([sys.executable, "-m", "empd", *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "empd" in ended.stdout


def test_work_that_needs_a_gpu_waits_where_there_is_none_and_status_says_why(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(drawn=service(worker={"is_gpu_bound": True}, is_gpu_bound=True), noop=service()))
    with daemon.client() as client:
        assert client.submit("drawn", None).accepted(30)
        drawn = client.status()["services"]["drawn"]
        assert drawn["waiting"] == 1
        assert "only GPU-bound workers offer it, one for each GPU of this box" in drawn["reasons"]
        assert client.status()["services"]["noop"]["reasons"] == []
    command = [sys.executable, "-m", "empd", "status", "--endpoint", f"ipc://{daemon.runtime_dir}/empd.sock"]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "no GPU (gpus = none), so no workers of drawn; `empd run --gpus virtual:1` stands in for one" in seen
