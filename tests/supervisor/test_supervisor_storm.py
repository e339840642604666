"""Many deaths at random instants: the supervisor stays whole, and nothing is left over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path

from supervisor_daemon import Daemon, mapping_of

from tests.box import is_alive, wait_until

ROUNDS = 120
WAYS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGSTOP)


def descriptors(pid: int) -> int:
    """How many it has open when it does nothing: a file being written is no leak."""
    return min(len(os.listdir(f"/proc/{pid}/fd")) for _ in range(50))


def test_random_deaths_leave_no_descriptor_no_zombie_and_no_orphan(daemon: Daemon):
    daemon.behave(w_0="has_grandchild", w_1="has_grandchild")
    limits = {"budget": 10_000, "backoff_first_s": 0.0, "backoff_max_s": 0.0, "heartbeat_s": 1.0, "start_s": 3.0}
    daemon.start(mapping=mapping_of(3), table=dict.fromkeys(("broker", "web", "worker"), limits))
    before = descriptors(daemon.pid)
    chance = random.Random(0)
    for _ in range(ROUNDS):
        victims = [each["pid"] for each in daemon.status()["children"] if each["pid"]]
        for pid in chance.sample(victims, k=min(len(victims), chance.randint(1, 3))):
            # Its number may be out of date: it is killed only while it is a child of this daemon.
            if f"PPid:\t{daemon.pid}\n" in status_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, chance.choice(WAYS))
        asked = len(daemon.events("entered"))
        wait_until(lambda asked=asked: len(daemon.events("entered")) > asked or daemon.has_settled(), "something")
    # The stopped ones are found by their silence, or by never being ready.
    wait_until(lambda: all(is_running(each["pid"]) for each in daemon.status()["children"]), "all to run again")
    wait_until(lambda: daemon.status()["status"] == "3 of 3 workers ready", "all to be ready")
    living = {each["pid"] for each in daemon.status()["children"]}
    assert descriptors(daemon.pid) == before
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == 1
    # What a dead child leaves behind is the supervisor's to bury, a moment later.
    wait_until(
        lambda: not any("Z (zombie)" in status_of(pid) for pid in children_of(daemon.pid)), "the dead to be buried"
    )
    # Five children and the sentinel.
    assert len(children_of(daemon.pid)) == len(living) + 1
    dead = [each["grandchild"] for each in daemon.events("grandchild") if each["pid"] not in living]
    assert dead
    assert not any(is_alive(pid) for pid in dead)
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    return "State:" in (status := status_of(pid)) and "T (stopped)" not in status
