"""The real binding against a stub of the vendor's library, in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from empd import lifecycle
from empd.lifecycle import ChildKind, Control, Notice
from empd.memory.board import UNKNOWN, Board, Gauges, Identity
from empd.telemetry.nvml import Flag
from tests.box import wait_until

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENTRY = HERE / "telemetry_entry.py"
GIB = 1 << 30


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the compiled stub."""
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", target, HERE / "nvml_stub.c"], check=True)
    return folder


class Box:
    """A machine with the stub: its faults, and what runs on it."""

    def __init__(self, folder: Path, library: Path | None) -> None:
        self._faults = folder / "faults"
        self._log = folder / "inits"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NVML_STUB_FAULTS": str(self._faults),
            "NVML_STUB_LOG": str(self._log),
            "LD_LIBRARY_PATH": str(library or folder),
        }
        self.board = Board.create(8)
        self.control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self.process: subprocess.Popen[bytes] | None = None

    def faults(self, *words: str) -> None:
        """Sets the faults; the file changes as a whole."""
        fresh = self._faults.with_suffix(".new")
        fresh.write_text(" ".join(words))
        os.replace(fresh, self._faults)

    def enumerate(self) -> Any:
        """What the supervisor's child would answer."""
        done = subprocess.run(
            [sys.executable, ENTRY, "enumerate"], env=self._environment, capture_output=True, check=True, timeout=30
        )
        return json.loads(done.stdout)

    def start(self, interval_s: float = 0.02) -> subprocess.Popen[bytes]:
        """The telemetry process; returns once it has said READY."""
        fds = (self._theirs.fileno(), self.board.fd)
        self.process = subprocess.Popen(
            [sys.executable, ENTRY, "run", *map(str, fds), str(interval_s)], env=self._environment, pass_fds=fds
        )
        self._theirs.close()
        first = wait_until(lambda: lifecycle.receive(self.control), "READY")
        assert first == [Control(Notice.READY, ChildKind.TELEMETRY)]
        return self.process

    def pin(self, slot: int, uuid: str, *, virtual: bool = False) -> None:
        """Seats a worker with a device."""
        writer = self.board.writer(slot, Identity)
        writer.write(Identity(ChildKind.WORKER, f"gpu{slot}", 100 + slot, 5, device_uuid=uuid, virtual=virtual))

    def gauges(self, slot: int) -> Gauges | None:
        return self.board.read(slot).gauges

    def wait_for(self, slot: int, condition: Callable[[Gauges], bool], what: str) -> Gauges:
        """The first gauges of a slot that meet the condition."""

        def look() -> Gauges | None:
            gauges = self.gauges(slot)
            return gauges if gauges and condition(gauges) else None

        found = wait_until(look, what)
        assert isinstance(found, Gauges)
        return found

    def heartbeat_ns(self) -> int:
        activity = self.board.read(0).activity
        return activity.heartbeat_mono_ns if activity else 0

    def inits(self) -> int:
        return len(self._log.read_text().splitlines()) if self._log.exists() else 0

    def close(self) -> None:
        self.control.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            self._theirs.close()
        self.board.close()


@pytest.fixture
def box(tmp_path: Path, library: Path) -> Iterator[Box]:
    made = Box(tmp_path, library)
    yield made
    made.close()


def test_devices_are_enumerated_as_nvml_names_them(box: Box) -> None:
    assert box.enumerate() == [
        {"index": i, "uuid": f"GPU-stub-{i}", "name": f"Stub GPU {i}", "memory_total_bytes": 24 * GIB, "virtual": False}
        for i in range(2)
    ]


def test_a_lost_gpu_does_not_hide_the_others(box: Box) -> None:
    box.faults("lost0")
    assert [device["uuid"] for device in box.enumerate()] == ["GPU-stub-1"]


def test_a_box_without_the_library_says_so(tmp_path: Path) -> None:
    empty = Box(tmp_path, None)
    try:
        assert "driver" in empty.enumerate()
    finally:
        empty.close()


def test_a_library_without_a_driver_says_so(box: Box) -> None:
    box.faults("nodriver")
    assert "driver" in box.enumerate()


def test_gauges_of_every_pinned_slot_are_written(box: Box) -> None:
    for slot, uuid in ((1, "GPU-stub-0"), (2, "GPU-stub-1"), (3, "GPU-stub-1")):
        box.pin(slot, uuid)
    box.pin(4, "VIRTUAL-0", virtual=True)
    before_ns = time.monotonic_ns()
    box.start()
    first = box.wait_for(1, lambda gauges: True, "gauges")
    assert first == Gauges(first.at_mono_ns, 40, GIB, 24 * GIB, 60, 250000, 123456789012, 4, 3, 0, 0)
    assert first.at_mono_ns >= before_ns
    third = box.wait_for(3, lambda gauges: True, "gauges of a shared GPU")
    assert (third.utilisation_percent, third.memory_used_bytes, third.temperature_c) == (41, 2 * GIB, 61)
    box.wait_for(1, lambda gauges: gauges.at_mono_ns > first.at_mono_ns, "the next reading")
    assert box.gauges(4) is None
    assert box.gauges(0) is None


def test_a_servers_processes_are_told_apart_from_others_on_its_gpu(box: Box) -> None:
    """A keeper leads its session; what its server has started is in it."""
    script = "import os, subprocess; print(os.getpid(), subprocess.Popen(['sleep', '60'], stdout=2).pid, flush=True)"
    keeper = subprocess.Popen(
        [sys.executable, "-c", f"{script}; os.wait()"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert keeper.stdout is not None
        keeper_pid, server_pid = map(int, keeper.stdout.readline().split())
        seat = Identity(ChildKind.SERVER, "s@gpu0", keeper_pid, 5, device_uuid="GPU-stub-0")
        box.board.writer(1, Identity).write(seat)
        box.pin(2, "GPU-stub-0")
        box.faults(f"pid0={server_pid}")
        box.start()
        told = box.wait_for(1, lambda gauges: gauges.processes_memory_bytes != UNKNOWN, "the server's share")
        assert (told.processes_memory_bytes, told.memory_used_bytes) == (3 * GIB, GIB)
        worker = box.wait_for(2, lambda gauges: True, "the worker's gauges")
        assert worker.processes_memory_bytes == UNKNOWN
        box.faults("poor0")
        box.wait_for(1, lambda gauges: gauges.processes_memory_bytes == UNKNOWN, "no share where none is told")
        box.faults("lost0")
        lost = box.wait_for(1, lambda gauges: gauges.flags == Flag.LOST, "the loss")
        assert lost.processes_memory_bytes == UNKNOWN
    finally:
        os.killpg(keeper.pid, signal.SIGKILL)
        keeper.wait()


def test_a_slot_that_is_filled_later_gets_gauges(box: Box) -> None:
    box.start()
    box.pin(6, "GPU-stub-1")
    assert box.wait_for(6, lambda gauges: True, "gauges").temperature_c == 61


def test_a_lost_gpu_is_a_value_and_comes_back(box: Box) -> None:
    box.pin(1, "GPU-stub-0")
    box.pin(2, "GPU-stub-1")
    process = box.start()
    box.wait_for(1, lambda gauges: gauges.flags == 0, "gauges")
    box.faults("lost0")
    lost = box.wait_for(1, lambda gauges: gauges.flags == Flag.LOST, "the loss")
    assert (lost.utilisation_percent, lost.memory_used_bytes, lost.temperature_c) == (UNKNOWN, UNKNOWN, UNKNOWN)
    neighbour = box.wait_for(2, lambda gauges: gauges.at_mono_ns > lost.at_mono_ns, "the neighbour's next reading")
    assert (neighbour.flags, neighbour.temperature_c) == (0, 61)
    box.faults("reset0")
    box.wait_for(1, lambda gauges: gauges.flags == Flag.RESET_REQUIRED, "the need of a reset")
    box.faults()
    box.wait_for(1, lambda gauges: gauges.flags == 0 and gauges.temperature_c == 60, "the GPU's return")
    assert process.poll() is None


def test_an_unknown_gpu_counts_as_lost(box: Box) -> None:
    box.pin(1, "GPU-of-another-box")
    box.start()
    assert box.wait_for(1, lambda gauges: True, "gauges").flags == Flag.LOST


def test_what_a_gpu_does_not_report_is_unknown(box: Box) -> None:
    box.faults("poor0", "odd1")
    box.pin(1, "GPU-stub-0")
    box.pin(2, "GPU-stub-1")
    box.start()
    poor = box.wait_for(1, lambda gauges: True, "gauges")
    assert poor == Gauges(poor.at_mono_ns, UNKNOWN, GIB, 24 * GIB, UNKNOWN, UNKNOWN, UNKNOWN, 0, UNKNOWN, 0, 0)
    odd = box.wait_for(2, lambda gauges: True, "gauges")
    assert odd == Gauges(odd.at_mono_ns, UNKNOWN, UNKNOWN, 24 * GIB, UNKNOWN, UNKNOWN, UNKNOWN, 0, UNKNOWN, 0, 0)


def test_a_critical_error_is_shown_from_then_on(box: Box) -> None:
    box.pin(1, "GPU-stub-0")
    box.pin(2, "GPU-stub-1")
    box.start()
    assert box.wait_for(1, lambda gauges: True, "gauges").xid == 0
    box.faults("xid0")
    seen = box.wait_for(1, lambda gauges: gauges.xid == 79, "the Xid")
    later = box.wait_for(1, lambda gauges: gauges.at_mono_ns > seen.at_mono_ns, "the next reading")
    assert later.xid == 79
    assert box.wait_for(2, lambda gauges: gauges.at_mono_ns >= seen.at_mono_ns, "the neighbour").xid == 0


def test_a_session_that_is_over_is_opened_anew(box: Box) -> None:
    box.pin(1, "GPU-stub-0")
    box.start()
    box.wait_for(1, lambda gauges: gauges.flags == 0, "gauges")
    assert box.inits() == 1
    box.faults("over", "nodriver")
    box.wait_for(1, lambda gauges: gauges.flags == Flag.UNREADABLE, "the end of the session")
    wait_until(lambda: box.inits() >= 3, "tries to open it anew")
    box.faults()
    box.wait_for(1, lambda gauges: gauges.flags == 0 and gauges.temperature_c == 60, "readings again")


def test_a_box_without_nvml_still_has_a_heartbeat(tmp_path: Path) -> None:
    empty = Box(tmp_path, None)
    try:
        empty.pin(1, "GPU-stub-0")
        empty.start()
        assert empty.wait_for(1, lambda gauges: True, "gauges").flags == Flag.UNREADABLE
        first_ns = empty.heartbeat_ns()
        wait_until(lambda: empty.heartbeat_ns() > first_ns, "a heartbeat")
    finally:
        empty.close()


def test_a_hanging_driver_stops_the_heartbeat_and_dies_by_kill(box: Box) -> None:
    box.pin(1, "GPU-stub-0")
    process = box.start()
    box.wait_for(1, lambda gauges: True, "gauges")
    box.faults("hang0")

    def is_silent() -> bool:
        return time.monotonic_ns() - box.heartbeat_ns() > 500_000_000

    wait_until(is_silent, "the heartbeat to stop")
    lifecycle.send(box.control, Control(Notice.STOP))
    assert box.gauges(1) is not None
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def test_interval_zero_is_heartbeats_alone(box: Box) -> None:
    box.pin(1, "GPU-stub-0")
    box.start(interval_s=0)
    first_ns = box.heartbeat_ns()
    wait_until(lambda: box.heartbeat_ns() > first_ns + 200_000_000, "heartbeats")
    assert box.gauges(1) is None
    assert box.inits() == 0


@pytest.mark.parametrize(
    ("notice", "answers"),
    [(Notice.STOP, []), (Notice.DRAIN, [Control(Notice.DRAINED, ChildKind.TELEMETRY)])],
)
def test_stop_and_drain_end_it_with_zero(box: Box, notice: Notice, answers: list[Control]) -> None:
    process = box.start()
    lifecycle.send(box.control, Control(Notice.PICTURE_END))
    lifecycle.send(box.control, Control(notice))
    assert process.wait(60) == 0
    assert (lifecycle.receive(box.control) or []) == answers


def test_it_ends_with_its_supervisor(box: Box) -> None:
    process = box.start()
    box.control.close()
    assert process.wait(60) == 1


def test_it_costs_next_to_nothing_at_idle(box: Box) -> None:
    process = box.start(interval_s=0)
    stat = Path(f"/proc/{process.pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before, first_ns = ticks(), box.heartbeat_ns()
    wait_until(lambda: box.heartbeat_ns() > first_ns + 1_000_000_000, "a second of heartbeats")
    # A busy loop would have used about 100 ticks; 20 heartbeats a second use about one.
    assert ticks() - before <= 20
