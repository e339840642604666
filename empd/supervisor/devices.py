"""Which GPUs there are. NVML is asked in a child that may hang and be killed; the supervisor never loads it."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import msgspec

from empd import prctl
from empd.device import Device, virtual_devices
from empd.lifecycle import parent_is_gone
from empd.supervisor.descriptors import close_all_but
from empd.supervisor.signals import forget_in_child

_log = logging.getLogger("empd.supervisor")
ENUMERATE = "empd.telemetry.enumerate:enumerate_devices"
LIMIT_S = 10.0
_ANSWER_BYTES_MAX = 1 << 20


class Found(NamedTuple):
    """The devices, and one line why there are none where that needs a reason."""

    devices: list[Device]
    reason: str = ""


def find(gpus: str | Sequence[str], entry: str = ENUMERATE, limit_s: float = LIMIT_S) -> Found:
    """The devices that the setting `gpus` means: "auto", "none", "virtual:N", or a list of UUIDs.

    Takes at most `limit_s`. Names that NVML does not know are left out and named in the reason.
    """
    if isinstance(gpus, str):
        if gpus == "none":
            return Found([], "gpus = none")
        if gpus.startswith("virtual:"):
            return Found(virtual_devices(int(gpus.removeprefix("virtual:"))))
    found = enumerate_in_child(entry, limit_s)
    if gpus == "auto":
        return found
    wanted = [part.strip() for part in gpus.split(",")] if isinstance(gpus, str) else list(gpus)
    known = {device.uuid: device for device in found.devices}
    missing = [uuid for uuid in wanted if uuid not in known]
    reason = f"no GPU with UUID {', '.join(missing)}" if missing else ""
    return Found([known[uuid] for uuid in wanted if uuid in known], "; ".join(filter(None, (reason, found.reason))))


def enumerate_in_child(entry: str, limit_s: float) -> Found:
    """What `entry` returns, run in a child of its own within `limit_s`."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _answer(entry, write_fd, parent_pid)
    os.close(write_fd)
    try:
        answer = _read_until(read_fd, time.monotonic() + limit_s)
    finally:
        os.close(read_fd)
        # Dead or stuck in the driver: not waited for longer. The main loop reaps whatever becomes of it.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)
    if answer is None:
        return Found([], f"NVML gave no answer within {limit_s:g} s")
    return _parse(answer)


def _answer(entry: str, write_fd: int, parent_pid: int) -> NoReturn:
    try:
        prctl.die_with_parent()
        if not parent_is_gone(parent_pid):
            close_all_but((0, 1, 2, write_fd))
            forget_in_child()
            module_name, _, function_name = entry.partition(":")
            try:
                module = __import__(module_name, fromlist=[function_name])
                answer = json.dumps({"devices": getattr(module, function_name)()})
            except Exception as error:  # whatever the binding raises is the reason why there are no devices
                answer = json.dumps({"reason": f"{type(error).__name__}: {error}"})
            with open(write_fd, "wb") as stream:
                stream.write(answer.encode())
    finally:
        os._exit(0)


def _read_until(fd: int, deadline_s: float) -> bytes | None:
    """All that is written until the other end closes; None at the deadline."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    chunks: list[bytes] = []
    while sum(map(len, chunks)) < _ANSWER_BYTES_MAX:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
    return None


class _Answer(msgspec.Struct):
    devices: list[Device] = []
    reason: str = ""


def _parse(answer: bytes) -> Found:
    try:
        parsed = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError as error:
        return Found([], f"the enumeration of GPUs died without an answer ({error})")
    return Found(parsed.devices, parsed.reason)
