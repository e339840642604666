"""Internal services on the whole daemon: a server on each of two virtual GPUs, and all that can happen to one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from internal_box import SERVER, ServerBox, free_ports, internal, mapping_with

from empd.cli.codes import ExitCode
from empd.errors import JobDead
from empd.memory.board import Gauges
from tests.box import is_alive, wait_until

LOG_BYTES = 64 << 10


class Home:
    """The daemon of this module, and the base port of its GPU-bound service."""

    def __init__(self, box: ServerBox, base_port: int) -> None:
        self.box = box
        self.base_port = base_port


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    address = tmp_path_factory.mktemp("notify") / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, pytest.MonkeyPatch.context() as patch:
        notified.bind(str(address))
        patch.setenv("NOTIFY_SOCKET", str(address))
        yield from run_home()


def run_home() -> Iterator[Home]:
    base_port = free_ports(6)
    command = [*SERVER, "0", "{gpu_index}", "{gpu_uuid}", "{instance}"]
    services = {
        "double": internal(
            base_port,
            gpu=True,
            command=command,
            working_directory="/",
            environment={"CARD": "{gpu_uuid}:{port}", "OWN_TOKEN": "tell-nobody"},
            vram_max_bytes="1 GiB",
        ),
        "brief": internal(base_port + 2, recycle_after_jobs=3, stop_s=0.3),
        "leaky": internal(base_port + 3, memory_max_bytes="64 MiB", log_bytes_max=LOG_BYTES),
        "plain": internal(base_port + 4),
        # On a machine that is held up it may be taken for hung more often than the tests want: they bear that.
        "sick": internal(base_port + 5, health_timeout_s=0.5, hang_s=1),
    }
    with ServerBox(mapping_with(services), gpus="virtual:2", term_grace_s=1) as box:
        yield Home(box, base_port)


@pytest.fixture
def box(home: Home) -> ServerBox:
    """All four services take jobs."""
    wait_until(home.box.is_ready, "every service to take jobs again")
    return home.box


def test_each_worker_talks_to_its_own_gpus_server(home: Home, box: ServerBox) -> None:
    ports: dict[str, int] = {}

    def seen() -> bool:
        with box.client() as client:
            for handle in client.submit_many("double", [{"value": number} for number in range(8)]):
                answer = handle.result(30)
                assert ports.setdefault(answer["worker"], answer["port"]) == answer["port"]
        return len(ports) == 2

    wait_until(seen, "jobs on both GPUs")
    assert ports == {"double-gpu0": home.base_port, "double-gpu1": home.base_port + 1}


def test_a_server_gets_what_the_mapping_says_and_nothing_of_the_daemons(home: Home, box: ServerBox) -> None:
    facts = box.do("double", facts=True)
    index = int(facts["worker"][-1])
    port = home.base_port + index
    assert facts["argv"] == [str(port), "0", str(index), f"VIRTUAL-{index}", "0"]
    assert facts["environ"]["CARD"] == f"VIRTUAL-{index}:{port}"
    assert facts["environ"]["CUDA_VISIBLE_DEVICES"] == ""
    assert "NOTIFY_SOCKET" not in facts["environ"]
    assert facts["cwd"] == "/"
    opened = [each for each in facts["fds"] if not each.startswith("/proc/")]
    assert [each for each in opened if not re.match(r"/dev/null|pipe:|socket:|anon_inode:", each)] == []
    # stdout and stderr are one pipe, and it is the only one.
    assert len({each for each in opened if each.startswith("pipe:")}) == 1


def test_status_names_every_instance(home: Home, box: ServerBox) -> None:
    server = box.server("double@gpu1")
    assert (server["kind"], server["service"], server["port"]) == ("server", "double", home.base_port + 1)
    assert server["since_unix_s"] <= time.time() + 1
    _, body = box.get("/v1/services")
    (service,) = [each for each in body["services"] if each["name"] == "double"]
    told = service["servers"]
    assert [(each["index"], each["name"], each["port"]) for each in told] == [
        (0, "double@gpu0", home.base_port), (1, "double@gpu1", home.base_port + 1)
    ]  # fmt: skip
    assert told[1]["server_pid"] == server["server_pid"]
    assert told[1]["server_rss_bytes"] > 1 << 20
    _, body = box.get("/v1/status")
    (child,) = [each for each in body["children"] if each["name"] == "double@gpu1"]
    assert (child["kind"], child["pid"], child["server_pid"]) == ("server", server["pid"], server["server_pid"])
    (gpu,) = [each for each in body["gpus"] if each["uuid"] == "VIRTUAL-1"]
    assert (gpu["workers"], gpu["servers"]) == (["double-gpu1"], ["double@gpu1"])
    ended = subprocess.run(
        [sys.executable, "-m", "empd", "status", "--endpoint", f"ipc://{box.runtime_dir}/empd.sock"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"}, check=False,
    )  # fmt: skip
    assert ended.returncode == ExitCode.OK, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if "double@gpu1" in line]
    assert {"ready", str(server["server_pid"]), str(home.base_port + 1)} <= set(line.split())


def test_the_log_is_told_and_what_is_not_there_is_not_found(box: ServerBox) -> None:
    status, body = box.get("/v1/services/double/instances/1/log")
    assert (status, body["name"], body["index"]) == (200, "double@gpu1", 1)
    assert any(line.startswith("starting on ") for line in body["lines"])
    assert {"a word on stderr", "my token is ***"} <= {*body["lines"]}
    _, body = box.get("/v1/services/double/instances/1/log?lines=1")
    assert len(body["lines"]) == 1
    for path, expected in (
        ("double/instances/9/log", 404),
        ("plain/instances/1/log", 404),
        ("nothing/instances/0/log", 404),
        ("double/instances/x/log", 400),
        ("double/instances/-1/log", 400),
        ("double/instances/0/log?lines=0", 400),
    ):
        assert box.get(f"/v1/services/{path}")[0] == expected, path


def test_a_job_that_kills_its_server_again_and_again_ends_dead_with_the_servers_last_words(box: ServerBox) -> None:
    before = box.server("double@gpu0")["restarts"] + box.server("double@gpu1")["restarts"]
    with box.client() as client:
        handle = client.submit("double", {"do": "crash"})
        with pytest.raises(JobDead) as caught:
            handle.result(60)
    assert caught.value.failure == "unavailable"
    assert "died while the job ran on it" in str(caught.value)
    _, body = box.get(f"/v1/jobs/{handle.id}")
    assert "my token was ***: the very last words" in body["error"]["evidence"]
    assert "killed by signal 11" in box.output("double@gpu0") + box.output("double@gpu1")
    wait_until(
        lambda: box.server("double@gpu0")["restarts"] + box.server("double@gpu1")["restarts"] >= before + 2,
        "a restart for each of its two attempts",
    )
    assert box.do("double", value="after")["value"] == "after"
    crashed = [each for each in ("double@gpu0", "double@gpu1") if box.server(each)["last_exit"] == "crashed"]
    assert crashed
    assert {box.server(each)["last_status"] for each in crashed} == {signal.SIGSEGV}


def test_a_connector_that_does_not_notice_its_servers_death_is_told(box: ServerBox, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with box.client() as client:
        handle = client.submit("sick", {"deaf": str(begun), "value": 3}, retries=0)
        wait_until(begun.exists, "the job to run")
        os.kill(box.wait_server("sick@box")["server_pid"], signal.SIGKILL)
        assert handle.result(60)["value"] == 3
        assert handle.status().attempts == 2
    assert "it went on waiting for its server" in box.log()


@pytest.mark.parametrize("how", ["stubborn", "clingy"])
def test_a_connector_that_does_not_let_go_is_opened_for_the_next_server_all_the_same(box: ServerBox, how: str) -> None:
    before = box.server("plain@box")
    assert box.do("plain", value=1, **{how: True})["pid"] == before["server_pid"]
    if how == "stubborn":
        looks_s = time.monotonic() + 1
        wait_until(lambda: time.monotonic() > looks_s, "its check to be under way")
    os.kill(before["server_pid"], signal.SIGKILL)
    after = box.wait_server("plain@box", other_than=before["generation"])
    assert box.do("plain", value=2)["pid"] == after["server_pid"]


def test_a_server_that_hangs_behind_an_open_port_is_stopped_and_started_again(box: ServerBox) -> None:
    before = box.server("sick@box")
    assert box.do("sick", value=1, do="ill")["value"] == 1
    after = box.wait_server("sick@box", other_than=before["generation"])
    assert after["last_exit"] == "hung"
    output = box.output("sick@box")
    assert "hangs: not well for 1 s" in output
    # Where it stood, in its own log.
    assert "serve_forever" in output
    assert box.do("sick", value=2)["value"] == 2


def test_a_job_during_which_its_server_hangs_is_charged_a_crash(box: ServerBox) -> None:
    before = box.server("sick@box")
    with box.client() as client:
        handle = client.submit("sick", {"do": "stuck", "hold": True}, retries=0)
        with pytest.raises(JobDead, match="died while the job ran on it"):
            handle.result(60)
    assert box.wait_server("sick@box")["restarts"] >= before["restarts"] + 2


def test_a_server_is_replaced_after_so_many_jobs_and_none_is_lost(box: ServerBox) -> None:
    with box.client() as client:
        answers = [each.result(60) for each in client.submit_many("brief", [{"value": i} for i in range(10)])]
    assert sorted(answer["value"] for answer in answers) == list(range(10))
    pids = [answer["pid"] for answer in sorted(answers, key=lambda answer: answer["value"])]
    assert max(pids.count(pid) for pid in pids) <= 3
    assert box.wait_server("brief@box")["last_exit"] == "drained"


def test_a_connector_asks_for_a_new_server_and_the_job_that_asked_still_ends_well(box: ServerBox) -> None:
    before = box.server("leaky@box")
    assert box.do("leaky", recycle="the queue is wedged", value=5)["pid"] == before["server_pid"]
    answer = box.do("leaky", value=6)
    assert answer["pid"] == box.wait_server("leaky@box", other_than=before["generation"])["server_pid"]
    assert box.server("leaky@box")["last_exit"] == "drained"
    assert "the queue is wedged" in box.log()


def test_a_server_whose_connector_finds_it_ill_is_replaced_though_its_port_answers(box: ServerBox) -> None:
    before = box.server("sick@box")
    box.do("sick", sulk=True)
    box.wait_server("sick@box", other_than=before["generation"])
    assert "not well for 1 s: health check failed" in box.log()
    assert box.do("sick", value=7)["value"] == 7


def test_a_server_that_ignores_term_is_killed_when_its_time_is_over(box: ServerBox) -> None:
    before = box.server("brief@box")
    box.do("brief", do="deaf", recycle="go")
    box.wait_server("brief@box", other_than=before["generation"])
    assert "still runs 0.3 s after SIGTERM: KILL" in box.output("brief@box")
    assert not is_alive(before["server_pid"])


def test_a_server_that_leaks_is_replaced_between_two_jobs(box: ServerBox) -> None:
    before = box.server("leaky@box")
    assert box.do("leaky", do="leak", bytes=100 << 20, value=1)["value"] == 1
    after = box.wait_server("leaky@box", other_than=before["generation"])
    assert after["last_exit"] == "drained"
    assert re.search(r"is replaced when no job runs on it: \d+ bytes of memory, limit", box.output("leaky@box"))


def test_a_servers_gpu_memory_has_a_limit_above_what_it_needs_when_idle(box: ServerBox) -> None:
    before = box.server("double@gpu1")
    slot = before["slot"]

    def told(used_bytes: int) -> None:
        box.write_gauges(slot, Gauges(at_mono_ns=time.monotonic_ns(), processes_memory_bytes=used_bytes))

    def shown() -> int:
        _, body = box.get("/v1/services")
        (service,) = [each for each in body["services"] if each["name"] == "double"]
        return service["servers"][1]["server_vram_bytes"]

    # Idle it holds more than the limit: replacing it would change nothing, for ever.
    told(2 << 30)
    wait_until(lambda: shown() == 2 << 30, "the gauge to be shown")
    looked_s = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > looked_s, "its keeper to have looked a few times")
    assert box.server("double@gpu1")["generation"] == before["generation"]
    told(3 << 30)
    box.wait_server("double@gpu1", other_than=before["generation"])
    assert f"{3 << 30} bytes of GPU memory, limit {5 << 29}" in box.output("double@gpu1")


def test_output_without_end_neither_blocks_the_server_nor_fills_the_disk(box: ServerBox) -> None:
    assert box.do("leaky", do="loud", lines=5000, value=3)["value"] == 3
    folder = box.state_dir / "servers"

    def last() -> bool:
        return "line 4999 " in box.output("leaky@box")

    wait_until(last, "the last line")
    kept = [path.stat().st_size for path in folder.glob("leaky@box.log*")]
    assert len(kept) == 2
    assert sum(kept) <= LOG_BYTES
    _, body = box.get("/v1/services/leaky/instances/0/log?lines=10000")
    numbers = [int(found[1]) for line in body["lines"] if (found := re.match(r"line (\d+) ", line))]
    assert numbers == list(range(numbers[0], 5000))


def test_a_killed_keeper_takes_its_server_with_it_and_is_replaced(box: ServerBox) -> None:
    before = box.server("plain@box")
    box.signal("plain@box")
    after = box.wait_server("plain@box", other_than=before["generation"])
    wait_until(lambda: not is_alive(before["server_pid"]), "the server to die with its keeper")
    assert after["server_pid"] != before["server_pid"]
    assert box.do("plain", value=8)["pid"] == after["server_pid"]


def test_a_killed_worker_leaves_the_server_alone(box: ServerBox) -> None:
    before = box.server("plain@box")
    box.signal("plain-0")
    assert box.do("plain", value=9)["pid"] == before["server_pid"]
    assert box.server("plain@box")["generation"] == before["generation"]


# --- daemons of their own --------------------------------------------------------------------------------------------


@pytest.fixture
def daemon() -> Iterator[Callable[..., ServerBox]]:
    """Makes daemons with one service `s`; they are gone after the test."""
    made: list[ServerBox] = []

    def make(entry: dict[str, Any], **settings: Any) -> ServerBox:
        box = ServerBox(mapping_with({"s": entry}), **{"term_grace_s": 1, **settings})
        made.append(box)
        return box

    yield make
    for box in made:
        box.close()


def reason_of(box: ServerBox) -> str:
    with box.client() as client:
        return "; ".join(client.status()["services"]["s"]["reasons"])


def started(box: ServerBox) -> None:
    """The daemon runs, whether or not its server does."""
    box.start(wait=False)
    wait_until(lambda: (box.runtime_dir / "http").exists() and "s-0" in box.children(), f"it to start\n{box.log()}")


def test_jobs_wait_for_a_server_that_is_still_starting_and_the_status_says_so(daemon: Callable[..., ServerBox]) -> None:
    box = daemon(internal(free_ports(1), command=[*SERVER, "3"]))
    started(box)
    with box.client() as client:
        handle = client.submit("s", {"value": 1})
        wait_until(lambda: "its server s@box is starting" in reason_of(box), "the reason")
        assert handle.result(60)["value"] == 1
    assert '"state":"waiting_for_service"' in box.log()


def test_a_server_that_does_not_get_well_in_time_is_stopped_as_hung(daemon: Callable[..., ServerBox]) -> None:
    box = daemon(internal(free_ports(1), command=[*SERVER, "600"], start_limit_s=0.5))
    started(box)
    wait_until(lambda: box.server("s@box")["restarts"] >= 2, "two restarts")
    assert box.server("s@box")["last_exit"] == "hung"
    wait_until(lambda: "last exit: hung" in reason_of(box), "the reason to say so")


def test_a_port_that_is_taken_and_a_program_that_is_not_there_are_named(daemon: Callable[..., ServerBox]) -> None:
    base_port = free_ports(1)
    with socket.create_server(("127.0.0.1", base_port)):
        box = daemon(internal(base_port))
        started(box)
        wait_until(lambda: f"port {base_port} is taken by another process" in box.output("s@box"), "the reason")
        # The stranger's port answers; its health must not be taken for the server's.
        assert box.server("s@box")["state"] != "ready"
        wait_until(lambda: "it could not be started, its log tells why" in reason_of(box), "the status to say so")
    box.wait_server("s@box")
    missing = daemon(internal(free_ports(1), command=["/nowhere/comfyui"]))
    started(missing)
    wait_until(lambda: "cannot be started: No such file or directory: /nowhere/comfyui" in missing.log(), "the reason")


def test_a_stop_ends_jobs_first_and_then_their_server(daemon: Callable[..., ServerBox]) -> None:
    box = daemon(internal(free_ports(1)))
    box.start()
    server = box.wait_server("s@box")
    with box.client() as client:
        handle = client.submit("s", {"do": "sleep", "seconds": 1, "value": 4})
        wait_until(lambda: client.status()["jobs"]["held"] == 1, "the job to run")
    assert box.stop() == 0
    assert not is_alive(server["server_pid"])
    assert "asked to end" in box.output("s@box")
    box.restart()
    with box.client() as client:
        assert client.job(handle.id).result(30)["value"] == 4
        assert client.job(handle.id).status().attempts == 1


def test_nothing_is_left_after_the_supervisor_is_killed(daemon: Callable[..., ServerBox]) -> None:
    box = daemon(internal(free_ports(1)))
    box.start()
    pid = box.wait_server("s@box")["server_pid"]
    box.kill()
    wait_until(lambda: not is_alive(pid), "the server to die with the supervisor")
    box.restart()
    assert box.do("s", value=1)["value"] == 1


def changed(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "server": {**entry["server"], "environment": {"NEW": "yes"}}}


def reload(box: ServerBox, entry: dict[str, Any], **worker: Any) -> None:
    """Returns when the worker, which comes after its server, has been replaced."""
    worker_generation = box.server("s-0")["generation"]
    box.mapping_path.write_text(json.dumps(mapping_with({"s": entry}, **worker)))
    assert box.process is not None
    box.process.send_signal(signal.SIGHUP)
    wait_until(lambda: box.server("s-0")["generation"] != worker_generation, "the worker to be replaced")
    wait_until(box.is_ready, "the service to take jobs")


def test_a_reload_keeps_a_server_whose_entry_stayed_and_rolls_one_that_changed(
    daemon: Callable[..., ServerBox],
) -> None:
    entry = internal(free_ports(1))
    box = daemon(entry)
    box.start()
    before = box.wait_server("s@box")

    reload(box, entry, description="another word")
    assert box.do("s", value=1)["pid"] == before["server_pid"]
    assert box.server("s@box")["generation"] == before["generation"]

    with box.client() as client:
        handles = client.submit_many("s", [{"value": i, "do": "sleep", "seconds": 0.1} for i in range(20)])
        reload(box, changed(entry))
        answers = [handle.result(60) for handle in handles]
        attempts = [client.job(handle.id).status().attempts for handle in handles]
    assert sorted(answer["value"] for answer in answers) == list(range(20))
    assert box.do("s", facts=True)["environ"]["NEW"] == "yes"
    assert box.server("s@box")["last_exit"] == "drained"
    assert set(attempts) <= {1, 2}


def test_a_job_whose_server_was_stopped_under_it_is_not_charged(daemon: Callable[..., ServerBox]) -> None:
    """A reload waits `drain_s` for the jobs on a server; `max_crashes` 1 would bury the job at its first crash."""
    entry = internal(free_ports(1))
    box = daemon(entry, drain_s=1, max_crashes=1)
    box.start()
    before = box.wait_server("s@box")
    with box.client() as client:
        handle = client.submit("s", {"do": "sleep", "seconds": 5, "value": 6}, retries=0)
        wait_until(lambda: client.status()["jobs"]["held"] == 1, "the job to run")
        reload(box, changed(entry))
        answer = handle.result(60)
    assert answer["value"] == 6
    assert answer["pid"] != before["server_pid"]


def test_keeper_logs_are_the_daemons_own_user_only(daemon: Callable[..., ServerBox]) -> None:
    box = daemon(internal(free_ports(1)))
    box.start()
    path: Path = box.state_dir / "servers" / "s@box.log"
    assert path.stat().st_mode & 0o007 == 0
