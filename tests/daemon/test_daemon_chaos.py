"""200 rounds of faults at random instants, on real processes: nothing is lost, nothing completes twice.

A round is some jobs in flight and one fault: SIGKILL of a worker, of the broker or of the web process, SIGSTOP of a
worker, or a connector that kills its own worker by SIGKILL, SIGSEGV or abort.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_journal import completions

from empd import Client
from empd.errors import JobDead, NotRunning
from tests.box import Box, mapping_of, service, wait_until

ROUNDS = 25
JOBS_A_ROUND = 60
COUNTED_A_ROUND = 4
FAULTS = ("worker", "worker", "broker", "broker", "web", "stop", "crash", "segv", "abort")


def chaos_mapping() -> dict[str, Any]:
    return mapping_of(
        many=service(worker={"instances": 2, "max_concurrent_jobs": 32}, api_config={"duration_s": 0.005}),
        one=service(worker={"instances": 3}, api_config={"duration_s": 0.002}),
        counted=service("PythonConnector", worker={"instances": 2}, api_config={"callable": "tasks:counted"}),
        poison=service("PythonConnector", api_config={"callable": "tasks:poison"}),
    )


def workers_of(daemon: Box) -> list[str]:
    """Those that chaos may hit."""
    return sorted(name for name in daemon.children() if name.rpartition("-")[0] in ("many", "one", "counted"))


def inflict(daemon: Box, client: Client, fault: str, chance: random.Random) -> list[Any]:
    """One fault; returns the handles of jobs that it needed."""
    if fault == "worker":
        daemon.signal(chance.choice(workers_of(daemon)))
    elif fault == "stop":
        stop_a_worker(client, chance)
    elif fault in ("broker", "web"):
        daemon.signal(fault)
    else:
        return [client.submit("one", {"fault": fault, "times": 1}, timeout_s=20)]
    return []


def status_of(client: Client) -> dict[str, Any] | None:
    """None: nobody answered for as long as a client waits."""
    with contextlib.suppress(NotRunning):
        return client.status()
    return None


def stop_a_worker(client: Client, chance: random.Random) -> None:
    """SIGSTOP of a worker that has said hello: one that still starts may be silent for longer than this test waits."""
    status = wait_until(lambda: status_of(client), "a broker: many kills in a row keep it away for up to 30 s")
    ready = [w["pid"] for w in status["workers"] if w["connected"] and w["name"].startswith("one")]
    if ready:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(sorted(ready)), signal.SIGSTOP)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", ["fsync", "os", "memory", "fsync-2", "os-2", "memory-2", "fsync-3", "fsync-4"])
def test_whatever_dies_every_job_ends_once(box: Callable[..., Box], tmp_path: Path, durability: str) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown by pytest when the test fails
    chance = random.Random(seed)
    lines = tmp_path / "executions"
    daemon = box(
        chaos_mapping(), durability=durability.partition("-")[0], max_crashes=1000, backoff_s=0.05, backoff_max_s=0.2,
        cancel_grace_s=0.3, term_grace_s=0.3,
    )  # fmt: skip
    with daemon.client() as client:
        wait_until(lambda: workers_of(daemon), "workers: a broker answers before they are forked")
        handles: list[Any] = []
        counted: list[Any] = []
        for _ in range(ROUNDS):
            handles += client.submit_many("many", [{}] * JOBS_A_ROUND, timeout_s=20, retries=100)
            handles += client.submit_many("one", [{}] * 8, timeout_s=1.0, retries=100)
            counted += client.submit_many("counted", [{"file": str(lines)}] * COUNTED_A_ROUND, timeout_s=20)
            instant_s = time.monotonic() + chance.random() * 0.15
            wait_until(lambda at=instant_s: time.monotonic() >= at, "a random instant")
            handles += inflict(daemon, client, chance.choice(FAULTS), chance)
        for handle in [*handles, *counted]:
            handle.result(90)
        accepted = {handle.number for handle in [*handles, *counted]}
        assert len(accepted) == len(handles) + len(counted)
        ended = completions(client)
        assert set(ended) == accepted
        assert set(ended.values()) == {1}
        executions = Counter(lines.read_text().split())
        assert set(executions) == {str(handle.number) for handle in counted}
        nothing_is_left(daemon, client)


def nothing_is_left(daemon: Box, client: Client) -> None:
    """Slots, queue, payload bytes and blobs are back at their idle level."""

    def idle() -> bool:
        status = client.status()
        jobs = status["jobs"]
        held = [worker["held"] for worker in status["workers"]]
        return not (jobs["unfinished"] or jobs["payload_bytes"] or any(held)) and len(held) == 8

    wait_until(idle, "an idle daemon with all its workers", 60)
    assert not [path for path in (daemon.state_dir / "spool").rglob("*") if path.is_file()]


def test_jobs_that_kill_do_not_keep_others_waiting_behind_an_open_circuit(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(one=service(api_config={"duration_s": 0})))
    deadly, harmless = {"fault": "crash", "times": 1}, {}
    with daemon.client() as client:
        # Twice as many deaths as a worker's budget allows in a minute; each life does the job that killed the last.
        results = list(client.submit_many("one", [deadly, harmless] * 20).results(120))
        assert len(results) == 40
    assert daemon.log().count("one-0 is gone: crashed") == 20
    assert "OPEN" not in daemon.log()


def test_a_job_is_dead_lettered_when_its_holders_died_max_crashes_times(
    box: Callable[..., Box], tmp_path: Path
) -> None:
    lines = tmp_path / "executions"
    daemon = box(chaos_mapping(), max_crashes=2, backoff_s=0.05)
    with daemon.client() as client:
        poison = client.submit("poison", {"file": str(lines)})
        neighbours = client.submit_many("many", [{}] * 200)
        with pytest.raises(JobDead, match="died while it held the job") as death:
            poison.result(60)
        assert death.value.failure == "worker_crashed"
        assert "signal 6" in death.value.evidence
        assert lines.read_text().split() == [str(poison.number)] * 2
        assert len(list(neighbours.results(60))) == 200
        assert client.status()["jobs"]["dead"] == 1
