"""The sentinel strikes when the supervisor's end of the pipe closes, and never otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisor_children import fork_sleeper

from empd.supervisor.trees import ProcessGroups
from tests.box import is_alive, wait_until


def sentinels() -> list[int]:
    """Children of this process that are sentinels."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, children) if is_alive(pid) and name_of(pid) == "empd:sentinel"]


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def hang_up(groups: ProcessGroups) -> None:
    """What the supervisor's death does."""
    os.close(groups._sentinel._fd)


@pytest.fixture
def sessions() -> Iterator[list[int]]:
    """Two processes, each in a session of its own."""
    pids = [fork_sleeper(own_session=True) for _ in range(2)]
    wait_until(lambda: all(os.getsid(pid) == pid for pid in pids), "the sessions")
    yield pids
    for pid in (*pids, *sentinels()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def test_what_is_left_over_goes_and_what_was_dropped_stays(sessions: list[int]):
    groups = ProcessGroups()
    for pid in sessions:
        groups.admit("w", pid)
    groups.remove("w", sessions[1])
    wait_until(sentinels, "the sentinel to have its name")
    assert all(is_alive(pid) for pid in sessions)
    hang_up(groups)
    wait_until(lambda: not is_alive(sessions[0]), "the session to be ended")
    wait_until(lambda: not sentinels(), "the sentinel to end")
    assert is_alive(sessions[1])


def test_a_killed_sentinel_is_replaced_and_its_successor_knows_all(sessions: list[int]):
    groups = ProcessGroups()
    groups.admit("w", sessions[0])
    first = wait_until(sentinels, "the sentinel")[0]
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    groups.admit("w", sessions[1])
    second = wait_until(sentinels, "its successor")[0]
    assert second != first
    hang_up(groups)
    wait_until(lambda: not any(is_alive(pid) for pid in sessions), "both sessions to be ended")


def test_a_stopped_sentinel_is_replaced_before_the_pipe_blocks(sessions: list[int]):
    groups = ProcessGroups()
    groups.admit("w", sessions[0])
    first = wait_until(sentinels, "the sentinel")[0]
    os.kill(first, signal.SIGSTOP)
    for _ in range(20_000):
        groups.admit("w", sessions[1])
    wait_until(lambda: not is_alive(first), "the stopped one to be dead")
    assert all(is_alive(pid) for pid in sessions)
    hang_up(groups)
    wait_until(lambda: not any(is_alive(pid) for pid in sessions), "both sessions to be ended")


def test_polite_signals_do_not_end_it(sessions: list[int]):
    groups = ProcessGroups()
    groups.admit("w", sessions[0])
    sentinel = wait_until(sentinels, "the sentinel")[0]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(sentinel, number)
    hang_up(groups)
    wait_until(lambda: not is_alive(sessions[0]), "the session to be ended")
