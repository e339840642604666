"""ComfyUI instances that are killed at every message of a job, twice in a row, and while another takes their port:
every job ends once, and each instance works again."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from services_comfyui import sleeping
from test_services_comfyui_daemon import comfyui_mapping, read

from empd.cli.demo.png import Picture, encode
from empd.client import JobHandle
from empd.supervisor.restart import Policy
from tests.box import Box, is_alive, wait_until
from tests.evidence import explained
from tests.internal.internal_box import free_ports

GPUS = 12
VICTIMS = range(GPUS - 1)
"""One instance lives on, so that jobs of the others have somewhere to go."""

MESSAGES_MIN = 40
"""So many has a job at least that uploads a picture, is shown previews, and saves two outputs."""

NOISE = random.Random(3)
PICTURE = encode(Picture(300, 300, 3, [NOISE.randbytes(900) for _ in range(300)]))


class Farm:
    """A daemon with an instance on each virtual GPU."""

    def __init__(self, box: Box, base_port: int) -> None:
        self.box = box
        self.base_port = base_port
        self.seeds = itertools.count()

    def url(self, gpu: int) -> str:
        """Where an instance listens."""
        return f"http://127.0.0.1:{self.base_port + gpu}"

    def counts(self, gpu: int) -> dict[str, Any]:
        """What the instance of a GPU has counted."""
        return read(f"{self.url(gpu)}/double/counts")

    def die(self, gpu: int, at: list[int]) -> None:
        """Has it kill itself at that message, its next life at the next number."""
        body = json.dumps({"at": at}).encode()
        request = urllib.request.Request(f"{self.url(gpu)}/double/die", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=20).close()

    def well(self) -> bool:
        """Every instance may be used by its worker."""
        (service,) = [each for each in read(f"{self.box.http()}/v1/services")["services"] if each["name"] == "comfyui"]
        reasons = [each["reason"] for each in service["instances"]]
        return len(reasons) == GPUS and not any(reasons)

    def calm(self) -> bool:
        """Every instance has been up for so long that its next start will be at once, whatever it went through."""
        children = json.loads((self.box.runtime_dir / "supervisor.json").read_text())["children"]
        servers = [child for child in children if child["kind"] == "server"]
        before_s = time.time() - Policy().healthy_s - 0.5
        return all(child["state"] == "ready" and child["since_unix_s"] < before_s for child in servers)

    def gpu_of(self, job: JobHandle) -> int:
        """Where a job runs, as soon as it does."""

        def found() -> list[int]:
            return [gpu for gpu in range(GPUS) if any(job.id in prompt for prompt in self.counts(gpu)["started"])]

        return wait_until(found, f"job {job.id} to run")[0]

    def payload(self) -> dict[str, Any]:
        """A workflow that nobody has run before: an input file, steps with previews, a text and a saved picture."""
        graph = sleeping(0.03, steps=2, previews=True, seed=next(self.seeds))
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "in.png"}}
        graph["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["9", 0]}}
        return {"workflow": graph, "files": {"in.png": PICTURE}}

    def one_each(self, client: Any) -> list[JobHandle]:
        """A job for every instance: each worker takes one at a time."""
        return list(client.submit_many("comfyui", [self.payload() for _ in range(GPUS)]))

    def check(self, jobs: list[JobHandle]) -> None:
        """Each has ended well, with its picture, and was completed once."""
        for job in jobs:
            result = job.result(60)
            assert [output["node_type"] for output in result["outputs"]] == ["SaveImage"]
            assert result["texts"]
            assert read(f"{self.box.http()}/v1/jobs/{job.id}")["state"] == "completed"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    base_port, folder = free_ports(GPUS), tmp_path_factory.mktemp("comfyui")
    mapping = comfyui_mapping(folder, base_port)
    server = mapping["services"]["comfyui"]["server"]
    server["command"][-1] = f"{folder}/comfyui-{{gpu_index}}"
    server["health_url"] = "http://127.0.0.1:{port}/double/counts"  # which is no message
    with Box(mapping, gpus=f"virtual:{GPUS}", backoff_s=0, max_crashes=50) as box:
        farm = Farm(box, base_port)
        with explained(box):
            wait_until(farm.well, "all servers to be well")
        yield farm


def strike(farm: Farm, at: dict[int, list[int]]) -> list[int]:
    """One job for every instance; those of `at` die as it says. Returns which have died; all are well again then."""
    wait_until(farm.calm, "instances to have been up for a while")
    with farm.box.client() as client:
        pids = {gpu: farm.counts(gpu)["pid"] for gpu in at}
        for gpu, numbers in at.items():
            farm.die(gpu, numbers)
        jobs = farm.one_each(client)
        with explained(farm.box, *jobs):
            farm.check(jobs)
            dead = [gpu for gpu, pid in pids.items() if not is_alive(pid)]
            wait_until(farm.well, f"instances that died at their messages {at} to work again")
        for gpu in at.keys() - dead:
            farm.die(gpu, [])
        return dead


def test_a_stranger_who_takes_a_dead_instances_port_and_says_nothing_holds_no_job(farm: Farm) -> None:
    with farm.box.client() as client:
        job = client.submit("comfyui", sleeping(30, steps=300, seed=next(farm.seeds)))
        gpu = farm.gpu_of(job)
        pid = farm.counts(gpu)["pid"]
        os.kill(pid, signal.SIGKILL)
        with take(farm.base_port + gpu), explained(farm.box, job):
            wait_until(lambda: job.status().attempts == 2, "the job to go elsewhere")
            wait_until(lambda: f"port {farm.base_port + gpu} is taken by another process" in farm.box.log(), "the news")
        job.cancel()
        with explained(farm.box):
            wait_until(farm.well, "the instance to find its port again")
        again = farm.one_each(client)
        with explained(farm.box, *again):
            farm.check(again)
        assert farm.counts(gpu)["pid"] != pid
        assert farm.counts(gpu)["finished"]


def test_an_instance_that_dies_at_whatever_message_takes_no_job_with_it_and_works_again(farm: Farm) -> None:
    # In the first round a second time too, at one of the messages by which its worker returns to it.
    at = {gpu: [1 + gpu, 1 + gpu] for gpu in VICTIMS}
    while dead := strike(farm, at):
        # One that has died at message N of this life was given a job: it had come back from the death before.
        assert not any(farm.counts(gpu)["doomed"] for gpu in dead)
        at = {gpu: [numbers[0] + len(VICTIMS)] for gpu, numbers in at.items()}
    assert min(at.values())[0] > MESSAGES_MIN, f"no instance that was to die at its message of {at} has run a job"


def take(port: int) -> socket.socket:
    """Listens there as soon as that can be, and never answers."""

    def listening() -> socket.socket | None:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            return None

    return wait_until(listening, "the port")
