"""GPU enumeration in a child that may fail in every way."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from empd.supervisor.devices import enumerate_in_child, find
from tests.box import is_alive, wait_until

A100 = {"index": 0, "uuid": "GPU-a", "name": "A100", "memory_total_bytes": 80 << 30}
T4 = {"index": 1, "uuid": "GPU-b", "name": "T4", "memory_total_bytes": 16 << 30}


def two_gpus():
    return [A100, T4]


def no_library():
    raise OSError("NVML Shared Library Not Found")


def dies():
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs():
    signal.pause()


def nonsense():
    return [{"uuid": 7}]


ME = __name__


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, ME, sys.modules[__name__])


@pytest.fixture(autouse=True)
def reaped():
    yield
    # The supervisor's loop would do this.
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def test_all_gpus_are_found_in_a_process_of_its_own():
    found = find("auto", f"{ME}:two_gpus")
    assert [(device.uuid, device.index, device.virtual) for device in found.devices] == [
        ("GPU-a", 0, False),
        ("GPU-b", 1, False),
    ]
    assert found.reason == ""


@pytest.mark.parametrize("choice", [("GPU-b", "GPU-x"), "GPU-b, GPU-x"])
def test_chosen_gpus_come_in_the_order_of_the_choice_and_missing_ones_are_named(choice):
    found = find(choice, f"{ME}:two_gpus")
    assert [device.uuid for device in found.devices] == ["GPU-b"]
    assert found.reason == "no GPU with UUID GPU-x"


def test_virtual_and_none_ask_nobody():
    assert find("none", "no.such:module").devices == []
    assert find("none").reason
    found = find("virtual:2", "no.such:module")
    assert [device.virtual for device in found.devices] == [True, True]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_library", "OSError: NVML Shared Library Not Found"),
        ("dies", "died without an answer"),
        ("nonsense", "died without an answer"),
        ("no_such_function", "AttributeError"),
    ],
)
def test_every_failure_is_no_devices_and_a_reason(function: str, reason: str):
    found = find("auto", f"{ME}:{function}")
    assert found.devices == []
    assert reason in found.reason


def test_a_hung_driver_holds_nobody_up():
    before = set(os.listdir("/proc/self/fd"))
    began_s = time.monotonic()
    found = enumerate_in_child(f"{ME}:hangs", 0.2)
    assert time.monotonic() - began_s < 60
    assert found.reason == "NVML gave no answer within 0.2 s"
    assert set(os.listdir("/proc/self/fd")) <= before
    with open(f"/proc/self/task/{os.getpid()}/children") as stream:
        left = [int(pid) for pid in stream.read().split()]
    wait_until(lambda: not any(is_alive(pid) for pid in left), "the child to be dead")
