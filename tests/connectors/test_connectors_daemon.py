"""Connectors inside a whole daemon: each worker's own instance, and what status, metrics and log show of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from empd.bench.scenario import connector_cancel
from empd.bench.scenario.connector import upstream
from empd.errors import JobCancelled
from tests.box import Box, mapping_of, service, wait_until

GPUS = 4
SECRET = "sk-very-secret-indeed"


class Instances:
    """One server for each GPU, on ports that follow each other; each answers with its own port."""

    def __init__(self) -> None:
        self.listeners = _listen_in_a_row(GPUS)
        self.base_port = self.listeners[0].getsockname()[1]
        for listener in self.listeners:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(str(listener.getsockname()[1]).encode())

    def close(self) -> None:
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _listen_in_a_row(count: int) -> list[socket.socket]:
    while True:
        found = [socket.create_server(("127.0.0.1", 0))]
        try:
            first = found[0].getsockname()[1]
            found += [socket.create_server(("127.0.0.1", first + offset)) for offset in range(1, count)]
        except (OSError, OverflowError):
            for listener in found:
                listener.close()
            continue
        return found


@pytest.fixture(scope="module")
def instances() -> Iterator[Instances]:
    servers = Instances()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def daemon(instances: Instances) -> Iterator[Box]:
    mapping = mapping_of(
        ping=service(
            "PingConnector",
            worker={"is_gpu_bound": True, "instances": GPUS},
            is_gpu_bound=True,
            api_config={"base_port": instances.base_port, "api_key": SECRET},
        ),
        lame=service("PingConnector", required_env=["EMPD_TEST_NEVER_SET"]),
    )
    mapping["connectors"] = {"PingConnector": {"path": "instances:PingConnector"}}
    with Box(mapping, gpus=f"virtual:{GPUS}") as box:
        yield box


@pytest.mark.parametrize("way", connector_cancel.SERVICES)
def test_a_cancel_reaches_the_service_behind_the_connector(way: str) -> None:
    """By its own verb, or by a connection that is closed; and no other job's."""
    with upstream() as url:
        entry = connector_cancel.services(url)[f"cancel_{way}"]
        with Box(mapping_of(work=service(worker={"max_concurrent_jobs": 2}, **entry))) as box, box.client() as client:
            one, other = (client.submit("work", {"number": number}) for number in (1, 2))
            begun_ns = max(connector_cancel.moment_ns(url, number, "begun") for number in (1, 2))
            assert one.cancel()
            assert connector_cancel.moment_ns(url, 1, "stopped") > begun_ns
            assert isinstance(one.exception(60), JobCancelled)
            assert other.status().state == "assigned"


def get(daemon: Box, path: str) -> Any:
    with urllib.request.urlopen(daemon.http() + path, timeout=30) as answer:
        return json.loads(answer.read())


def shown(daemon: Box) -> list[dict[str, Any]]:
    """What the status page shows of every worker's ping, once all have told of it."""

    def told() -> list[dict[str, Any]]:
        found = {each["name"]: each["instances"] for each in get(daemon, "/v1/services")["services"]}
        ready = [each for each in found["ping"] if each.get("info") and each["state"] == "idle"]
        return ready if len(ready) == GPUS and found["lame"] else []

    return wait_until(told, "every worker to tell of its service")


def test_each_worker_talks_to_the_instance_of_its_own_gpu(daemon: Box, instances: Instances) -> None:
    seen: dict[str, str] = {}

    def all_seen() -> bool:
        with daemon.client() as client:
            jobs = client.submit_many("ping", [{}] * 16)
            for result in jobs.results(60):
                assert seen.setdefault(result["worker"], result["name"]) == result["name"]
        return len(seen) == GPUS

    wait_until(all_seen, "every worker to have had a job")
    assert seen == {f"ping-gpu{n}": str(instances.base_port + n) for n in range(GPUS)}


def test_the_status_page_shows_what_connectors_say_of_themselves(daemon: Box, instances: Instances) -> None:
    for n, each in enumerate(shown(daemon)):
        url = f"http://127.0.0.1:{instances.base_port + n}"
        assert (each["worker"], each["endpoint"], each["protocol"]) == (f"ping-gpu{n}", url, "http")
        assert each["report"] == {"circuit": {url: "closed"}}
        assert each["models"] == ["tiny"]
        assert each["info"] == {"answers": str(instances.base_port + n)}
        assert each["configuration"]["api_key"] == "***"
    (connector,) = get(daemon, "/v1/connectors")["connectors"]
    lame = [each for each in connector["instances"] if each["service"] == "lame"]
    assert [each["missing_variables"] for each in lame] == [["EMPD_TEST_NEVER_SET"]]
    assert SECRET not in json.dumps(get(daemon, "/v1/connectors"))


def test_the_command_line_shows_it_too(daemon: Box, instances: Instances) -> None:
    shown(daemon)
    command = [sys.executable, "-m", "empd", "status", "--endpoint", f"ipc://{daemon.runtime_dir}/empd.sock"]
    environ = {**os.environ, "COLUMNS": "200"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout
    assert f'ping on ping-gpu2: circuit: {{"http://127.0.0.1:{instances.base_port + 2}": "closed"}}' in text
    assert "lame on lame-0: missing variables: EMPD_TEST_NEVER_SET" in text
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert {each["worker"] for each in found["instances"]} >= {"ping-gpu0", "lame-0"}


def test_a_connectors_metrics_reach_the_metrics_page(daemon: Box) -> None:
    with daemon.client() as client:
        client.submit("ping", {}).result(30)

    wanted = [
        ("empd_pings_total{", 'service="ping"'),  # its own, and those that every service has
        ("empd_job_duration_seconds_count{", 'service="ping",success="true"'),
        ("empd_jobs_total{", 'service="ping",status="completed"'),
        ("empd_service_health{", 'service="ping"'),
    ]

    def counted() -> bool:
        with urllib.request.urlopen(daemon.http() + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return all(
            any(line.startswith(name) and labels in line and float(line.split()[-1]) >= 1 for line in lines)
            for name, labels in wanted
        )

    wait_until(counted, "the connector's metrics")


def test_the_log_has_the_services_records_and_no_secret(daemon: Box) -> None:
    with daemon.client() as client:
        handle = client.submit("ping", {})
        result = handle.result(30)
    assert result["key"].endswith(f"-{handle.id}-1")

    def record() -> dict[str, Any] | None:
        for line in daemon.log().splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                if found["event"] == "service_report" and found["job"] == handle.id:
                    return found
        return None

    found = wait_until(record, "the record of the job")
    assert found["worker"] == result["worker"]
    assert (found["service"], found["connector"], found["protocol"]) == ("ping", "ping", "http")
    assert (found["schema"], found["port"]) == ("ping", int(result["name"]))
    assert found["machine"] == os.uname().nodename
    assert SECRET not in daemon.log()
