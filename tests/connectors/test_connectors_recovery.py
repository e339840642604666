"""How a whole daemon gets over a job that takes too long, a service that is away, and a worker that is stuck."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from empd.errors import EmpdError
from tests.box import Box, mapping_of, service, wait_until


class Upstream:
    """A server that answers as it is told, and counts."""

    def __init__(self) -> None:
        self.status = 200
        self.calls = 0
        self.works: dict[str, str] = {}
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream.calls += 1
                if self.path == "/buy":
                    key = self.headers.get("Idempotency-Key") or f"no key {upstream.calls}"
                    body = json.dumps({"id": upstream.works.setdefault(key, f"work {len(upstream.works)}")}).encode()
                self.send_response(upstream.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


@pytest.fixture(scope="module")
def daemon(upstream: Upstream) -> Iterator[Box]:
    mapping = mapping_of(
        api=service(
            "HTTPConnector",
            api_config={
                "base_url": upstream.url,
                "endpoint": "/do",
                "retry": {"attempts_max": 1},
                "circuit": {"failures_max": 2, "open_s": 2.0},
            },
            plugins=["plugs:Second", "plugs:Broken"],
        ),
        simulation=service(),
        stuck=service(retries=1),
        buyer=service("BuyerConnector", api_config={"base_url": upstream.url}),
    )
    mapping["connectors"] = {
        "HTTPConnector": {"path": "empd.connectors.protocol.http:HTTPConnector"},
        "BuyerConnector": {"path": "buyer:BuyerConnector"},
    }
    mapping["plugins"] = ["plugs:Stamp"]
    with Box(mapping, cancel_grace_s=0.3, term_grace_s=0.5, backoff_s=0.05) as box:
        yield box


def service_of(daemon: Box, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(daemon.http() + "/v1/services", timeout=30) as answer:
        services = json.loads(answer.read())["services"]
    (found,) = [each for each in services if each["name"] == name]
    return found


def test_plugins_work_around_the_jobs_of_their_service(daemon: Box, upstream: Upstream) -> None:
    upstream.status = 200
    with daemon.client() as client:
        result = client.submit("api", {"x": 1}).result(30)
        # The simulation has the plugins for all, and no others.
        assert client.submit("simulation", {"duration_s": 0}).result(30)["after"] == ["stamped"]
    assert result == {"x": 1, "words": ["stamped", "stamped"], "after": ["stamped"] * 2, "connector": "HTTPConnector"}

    def told() -> list[dict[str, Any]] | None:
        (instance,) = service_of(daemon, "api")["instances"] or [{}]
        shown = instance.get("plugins", [])
        return (
            shown if [each["name"] for each in shown] == ["stamp", "second", "broken"] and shown[2]["error"] else None
        )

    shown = wait_until(told, "the failing plugin on the status page")
    assert [each["failures"] for each in shown[:2]] == [0, 0]
    assert "is broken" in shown[2]["error"]


def test_service_unavailable_the_job_waits_uncharged_until_the_circuit_half_opens(
    daemon: Box, upstream: Upstream
) -> None:
    upstream.status = 503
    with daemon.client() as client:
        jobs = [client.submit("api", {"n": n}, retries=0) for n in range(3)]

        def held() -> Any:
            found = service_of(daemon, "api")
            reasons = found["broker"]["reasons"]
            return found if any(reason.startswith("circuit open: ") for reason in reasons) else None

        found = wait_until(held, "the circuit to hold the service")
        assert found["broker"]["slots"] == 0
        wait_until(
            lambda: any(
                value["state"] == "open"
                for each in service_of(daemon, "api")["instances"]
                for key, value in each["report"].items()
                if key.startswith("circuit ")
            ),
            "the circuit's state on the status page",
        )
        calls = upstream.calls
        upstream.status = 200
        # Every one ends well, although none may be tried twice on its own account.
        for job in jobs:
            assert job.result(30)["after"]
        assert upstream.calls - calls <= len(jobs) + 2
    wait_until(lambda: service_of(daemon, "api")["broker"]["slots"] == 1, "the service to be offered again")


def test_job_timeout_ends_the_job_and_not_its_worker(daemon: Box) -> None:
    pid = daemon.pid("simulation-0")
    with daemon.client() as client:
        slow = client.submit("simulation", {"duration_s": 3600}, timeout_s=0.3, retries=0)
        with pytest.raises(EmpdError) as caught:
            slow.result(30)
        assert caught.value.failure == "timeout"
        assert client.submit("simulation", {"duration_s": 0}).result(30)["steps"] == 1
    assert daemon.pid("simulation-0") == pid


def test_worker_stuck_is_replaced_and_its_job_runs_elsewhere(daemon: Box) -> None:
    pid = daemon.pid("stuck-0")
    with daemon.client() as client:
        # It holds the GIL: neither a cancel nor TERM reaches it.
        stuck = client.submit("stuck", {"fault": "hang_gil", "times": 1}, timeout_s=0.5)
        assert stuck.result(60)["steps"] == 1
    assert daemon.pid("stuck-0") != pid


@pytest.mark.parametrize(
    ("keyed", "dies", "works", "doubt"),
    [
        (True, "unconfirmed", 1, False),  # the same key: the upstream does it once
        (True, "confirmed", 1, False),  # taken up by its id
        (False, "confirmed", 1, False),
        (False, "unconfirmed", 2, True),  # nobody can know, and that is said
    ],
)
def test_a_worker_killed_in_mid_submission_buys_once_or_says_its_doubt(
    daemon: Box, upstream: Upstream, keyed: bool, dies: str, works: int, doubt: bool
) -> None:
    upstream.status = 200
    upstream.works.clear()
    with daemon.client() as client:
        handle = client.submit("buyer", {"keyed": keyed, "dies": dies})
        result = handle.result(60)
    assert (len(upstream.works), result["attempt"], bool(result["doubt"])) == (works, 2, doubt)
    assert result["id"] in upstream.works.values()
    if doubt:
        wait_until(lambda: "may have arrived" in job_log(daemon, handle.id), "the doubt in the job's log")
    assert handle.status().doubt == result["doubt"]
    wait_until(lambda: job_of(daemon, handle.id)["state"] == "completed", "the job in the history")
    assert job_of(daemon, handle.id)["doubt"] == result["doubt"]


@pytest.mark.parametrize(
    ("dies", "stays", "end"), [("unconfirmed", True, "cancelled"), ("always", False, "dead_lettered")]
)
def test_the_doubt_stands_on_the_job_while_it_runs_and_after_its_end(
    daemon: Box, upstream: Upstream, dies: str, stays: bool, end: str
) -> None:
    upstream.status = 200
    with daemon.client() as client:
        handle = client.submit("buyer", {"keyed": False, "dies": dies, "stays": stays})
        if stays:
            wait_until(lambda: handle.status().doubt, "the doubt on the job that runs")
            said = job_of(daemon, handle.id)
            assert (said["state"], said["ended"]) == ("assigned", False)
            assert "an earlier submission to shop" in said["doubt"]
            assert handle.cancel()
        handle.exception(60)
        wait_until(lambda: job_of(daemon, handle.id)["state"] == end, "the job's end")
        assert "an earlier submission to shop" in job_of(daemon, handle.id)["doubt"]
    with daemon.client() as client:  # one that did not hear of its end
        assert "an earlier submission to shop" in client.job(handle.id).status().doubt


def job_of(daemon: Box, job: str) -> Any:
    with urllib.request.urlopen(f"{daemon.http()}/v1/jobs/{job}", timeout=10) as answer:
        return json.loads(answer.read())


def job_log(daemon: Box, job: str) -> str:
    with urllib.request.urlopen(f"{daemon.http()}/v1/jobs/{job}/log", timeout=10) as answer:
        return answer.read().decode()
