"""How the broker asks the kernel to be scheduled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from broker_process import RawBroker

from empd import prctl

TURN_NS = 100_000

IN_A_PROCESS = f"""
import os, threading
from empd import prctl
{{before}}
told = prctl.take_short_turns({TURN_NS})
threads = [prctl.scheduling()]
other = threading.Thread(target=lambda: threads.append(prctl.scheduling()))
other.start()
other.join()
print(told, [(each.policy, each.nice, each.runtime_ns) for each in threads])
"""


def kernel_has_turns() -> bool:
    """Linux 6.12 tells of the length of a turn; before that it is 0 for all that is not a real-time deadline."""
    now = prctl.scheduling()
    return now is not None and now.runtime_ns > 0


needs_turns = pytest.mark.skipif(not kernel_has_turns(), reason="the kernel knows no length of turns")


def after(before: str) -> str:
    code = IN_A_PROCESS.format(before=before)
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


@needs_turns
def test_turns_are_short_in_later_threads_too_and_the_niceness_stays() -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert after("os.nice(3)") == f"True {[(os.SCHED_OTHER, nice, TURN_NS)] * 2}\n"


def test_a_policy_that_an_operator_chose_stays() -> None:
    told, threads = after("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))").split(" ", 1)
    assert told == "False"
    assert threads.count(f"({os.SCHED_BATCH}, ") == 2
    assert str(TURN_NS) not in threads


def test_an_unknown_machine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prctl, "_SYSCALLS", {})
    assert prctl.scheduling() is None
    assert not prctl.take_short_turns(TURN_NS)


@needs_turns
def test_all_threads_of_the_broker_have_short_turns(broker: RawBroker) -> None:
    assert broker.process is not None
    threads = [int(name) for name in os.listdir(f"/proc/{broker.process.pid}/task")]
    assert len(threads) > 1, "those of ZeroMQ too"
    assert [found.runtime_ns for thread in threads if (found := prctl.scheduling(thread))] == [TURN_NS] * len(threads)
