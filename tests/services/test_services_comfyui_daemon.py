"""ComfyUI in whole daemons: two doubles as internal services on two virtual GPUs, workers and servers that die, cancel,
the README's example, and 200 jobs into Azurite."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services_comfyui import picture, sleeping

from empd.cli.demo.png import decode
from empd.errors import JobCancelled
from empd.mapping import Mapping
from tests.azurite import Azurite
from tests.box import Box, is_alive, wait_until
from tests.evidence import explained
from tests.internal.internal_box import free_ports

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "tests" / "doubles" / "comfyui.py"
JOBS = 200


def read(url: str) -> Any:
    """A JSON document."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def comfyui_mapping(folder: Path, base_port: int, **service: Any) -> dict[str, Any]:
    """A worker type for each GPU, and an instance of the double as its server."""
    command = [sys.executable, str(DOUBLE), "--port", "{port}", "--directory", f"{folder}/comfyui-{{instance}}"]
    server = {"command": command, "base_port": base_port, "health_url": "http://127.0.0.1:{port}/system_stats"}
    server |= {"health_interval_s": 0.3, "health_timeout_s": 5, "start_limit_s": 30, "stop_s": 2}
    entry = {"connector": "ComfyUILocalConnector", "type": "internal", "is_gpu_bound": True, "server": server}
    entry |= {"api_config": {"poll_interval_s": 1.0}, "retries": 0}
    return {
        "workers": {"comfyui": {"services": ["comfyui"], "is_gpu_bound": True}},
        "services": {"comfyui": {**entry, **service}},
    }


class Cluster:
    """A daemon with two virtual GPUs."""

    def __init__(self, box: Box, base_port: int) -> None:
        self.box = box
        self.base_port = base_port

    def counts(self, gpu: int) -> dict[str, Any]:
        """What the instance of a GPU has counted."""
        return read(f"http://127.0.0.1:{self.base_port + gpu}/double/counts")

    def submissions(self) -> Counter[str]:
        """By prompt, at both instances."""
        return Counter(self.counts(0)["submissions"]) + Counter(self.counts(1)["submissions"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as the API shows it."""
        return read(f"{self.box.http()}/v1/jobs/{job_id}")

    def started_on(self, job_id: str) -> int:
        """Waits until a job's prompt runs; the GPU."""

        def found() -> list[int]:
            return [gpu for gpu in (0, 1) if any(job_id in prompt for prompt in self.counts(gpu)["started"])]

        return wait_until(found, f"job {job_id} to run")[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    base_port = free_ports(2)
    mapping = comfyui_mapping(tmp_path_factory.mktemp("comfyui"), base_port)
    with Box(mapping, gpus="virtual:2", backoff_s=0, max_crashes=3) as box:
        wait_until(lambda: all(not s["reason"] for s in services(box)), "both servers to be well")
        yield Cluster(box, base_port)


def services(box: Box) -> list[dict[str, Any]]:
    """Each instance of the service, as its worker tells."""
    found = [entry for entry in read(f"{box.http()}/v1/services")["services"] if entry["name"] == "comfyui"]
    instances = [each for entry in found for each in entry["instances"]]
    return instances if len(instances) == 2 else [{"reason": "not there yet"}]


def test_each_worker_talks_to_the_instance_of_its_own_gpu(cluster: Cluster) -> None:
    with cluster.box.client() as client:
        jobs = list(client.submit_many("comfyui", [sleeping(0.1, color=color) for color in range(12)]))
        results = [job.result(60) for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        gpu = int(cluster.job(job.id)["worker"][-1])
        assert result["prompt_id"] in cluster.counts(gpu)["submissions"]
        assert result["prompt_id"] not in cluster.counts(1 - gpu)["submissions"]
        assert result["outputs"][0]["asset"]["url"].startswith("/v1/assets/")
    assert cluster.counts(0)["submissions"]
    assert cluster.counts(1)["submissions"]


def test_the_image_of_a_job_is_served(cluster: Cluster) -> None:
    with cluster.box.client() as client:
        result = client.submit("comfyui", picture(0x102030)).result(60)
    asset = result["outputs"][0]["asset"]
    with urllib.request.urlopen(cluster.box.http() + asset["url"]) as answer:
        assert decode(answer.read()).rows[0][:3] == bytes((0xEF, 0xDF, 0xCF))


def test_a_worker_that_dies_leaves_a_prompt_that_its_successor_takes_up(cluster: Cluster) -> None:
    with cluster.box.client() as client:
        job = client.submit("comfyui", sleeping(3.0, steps=30, color=77))
        gpu = cluster.started_on(job.id)
        pid = cluster.box.signal(f"comfyui-gpu{gpu}")
        wait_until(lambda: not is_alive(pid), "the worker's death")
        result = job.result(60)
    assert result["adopted"]
    mine = {prompt: count for prompt, count in cluster.submissions().items() if job.id in prompt}
    assert mine == {result["prompt_id"]: 1}
    assert cluster.job(job.id)["attempts"] == 2


def test_cancel_stops_the_prompt_and_no_other(cluster: Cluster) -> None:
    wait_until(lambda: all(not s["reason"] for s in services(cluster.box)), "both workers to be well")
    with cluster.box.client() as client:
        jobs = list(client.submit_many("comfyui", [sleeping(2.0, steps=100, color=color) for color in (201, 202)]))
        gpus = {cluster.started_on(job.id): job for job in jobs}
        assert len(gpus) == 2
        gpus[0].cancel()
        with pytest.raises(JobCancelled):
            gpus[0].result(60)
        (stopped,) = [prompt for prompt in cluster.counts(0)["interrupted"] if gpus[0].id in prompt]
        assert stopped not in cluster.counts(0)["finished"] or cluster.counts(0)["finished"][stopped] == 1
        assert gpus[1].result(60)["outputs"]
    assert not any(gpus[1].id in prompt for prompt in cluster.counts(1)["interrupted"])
    assert cluster.counts(0)["interrupts_global"] == cluster.counts(1)["interrupts_global"] == 0


# --- the README ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_works(cluster: Cluster, tmp_path: Path) -> None:
    """The mapping as it stands is one; the command lines work as they stand."""
    text = (ROOT / "empd" / "connectors" / "README.md").read_text()
    section = text[text.index("\n## ComfyUI\n") :]
    (block,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)[:1]
    mapping = Mapping.from_dict(json.loads(block), {})
    assert mapping.services["comfyui"].connector == "ComfyUILocalConnector"
    (script,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[:1]
    places = {"EMPD_STATE_DIR": str(cluster.box.state_dir), "EMPD_RUNTIME_DIR": str(cluster.box.runtime_dir)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-ec", script],
        cwd=tmp_path,
        env={**os.environ, **places, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (output,) = json.loads(ended.stdout)["outputs"]
    assert output["node_type"] == "SaveImage"
    assert shlex.split(script.splitlines()[-1])[:3] == ["empd", "submit", "comfyui"]


# --- 200 jobs, a server that is killed, Azurite ----------------------------------------------------------------------


class Watcher:
    """Reads `/v1/events`; keeps the progress of every attempt."""

    def __init__(self, url: str) -> None:
        self.fractions: dict[tuple[str, Any], list[float]] = {}
        self._answer = urllib.request.urlopen(f"{url}/v1/events", timeout=60)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._answer:
            if line.startswith(b"data: "):
                said = json.loads(line[6:])
                if said.get("event") == "progress":
                    self.fractions.setdefault((said["job"], said["epoch"]), []).append(said["fraction"])

    def close(self) -> None:
        """Ends the stream."""
        if self._answer.fp is not None and (raw := getattr(self._answer.fp.raw, "_sock", None)) is not None:
            raw.shutdown(2)
        self._thread.join(60)
        self._answer.close()


def test_200_jobs_on_two_instances_of_which_one_is_killed(tmp_path: Path) -> None:
    base_port = free_ports(2)
    with Azurite() as azurite:
        mapping = comfyui_mapping(tmp_path, base_port, assets="cloud")
        mapping["assets"] = {"cloud": azurite.store("images")}
        with Box(mapping, gpus="virtual:2", backoff_s=0, max_crashes=3) as box, box.client() as client:
            cluster = Cluster(box, base_port)
            wait_until(lambda: all(not s["reason"] for s in services(box)), "both servers to be well")
            watcher = Watcher(box.http())
            graphs = [sleeping(0.04, steps=4, color=color) for color in range(JOBS)]
            jobs = list(client.submit_many("comfyui", graphs))
            with explained(box, *jobs):
                wait_until(lambda: len(cluster.counts(0)["finished"]) >= 20, "jobs to be under way")
                before = cluster.counts(0)
                os.kill(before["pid"], signal.SIGKILL)
                results = [job.result(100) for job in jobs]
                after = [cluster.counts(0), cluster.counts(1)]
            watcher.close()
            shown = [cluster.job(job.id) for job in jobs]
        images = azurite.blobs("images")
        first = next(iter(images))
        assert decode(azurite.read("images", first)).width == 8

    # Every job completed once; only what ran there, or was on its way there, was begun again.
    assert {job["state"] for job in shown} == {"completed"}
    assert sum(job["attempts"] > 1 for job in shown) <= 2
    assert after[0]["pid"] != before["pid"]
    # Each worker talked to its own instance: what a worker has done, its instance had been given.
    given = [{**before["submissions"], **after[0]["submissions"]}, after[1]["submissions"]]
    assert not given[0].keys() & given[1].keys()
    assert set(given[0].values()) | set(given[1].values()) == {1}
    for job, result in zip(shown, results, strict=True):
        gpu = int(job["worker"][-1])
        assert result["prompt_id"] not in given[1 - gpu]
        if gpu == 1 or job["attempts"] == 1:
            assert gpu == 0 or result["prompt_id"] in given[1]
    # Every image lies in Azurite, once.
    names = [output["asset"]["name"] for result in results for output in result["outputs"]]
    assert len(names) == len(set(names)) == JOBS
    assert set(images) == set(names)
    # No percentage ever fell, and every job's was told.
    assert {job for job, _ in watcher.fractions} <= {job.id for job in jobs}
    assert len({job for job, _ in watcher.fractions}) >= JOBS * 0.9
    assert all(fractions == sorted(fractions) for fractions in watcher.fractions.values())
