"""What the supervisor and its children agree on: child kinds, how a child is entered, and the control records.

Every child is forked by the supervisor and entered as `module:function` with one argument, its `Child`. The
function returns the exit status: 0 only after a stop or drain that was asked for.

A control record is one message on the child's socketpair (`SOCK_SEQPACKET`, so records keep their borders):

    offset  0     1            2      3     4     6     8           16     20     24
           kind  child kind  cause  flags  slot  pad  generation    pid  status  value (signed 64 bit)

The supervisor sends `UP`, `GONE`, `PICTURE_END`, `DRAIN`, `RESUME`, `RELOAD`, `STOP`; a child sends `READY`,
`DRAINED`, `RECYCLE`, `KILL`, `RELOAD_REQUEST`, `STOP_REQUEST`, `RECYCLE_SERVER`.
"""

from __future__ import annotations

import enum
import os
import socket
import struct
from pathlib import Path
from typing import Any, NamedTuple

from empd.device import Device

_RECORD = struct.Struct("<BBBBH2xQiiq")
RECORD_BYTES = _RECORD.size
EXIT_OPERATOR = 78
"""A child's exit status where trying again cannot help: only the operator can (a damaged or newer journal)."""


class ChildKind(enum.IntEnum):
    """The rows of the supervisor's table."""

    BROKER = 1
    WEB = 2
    TELEMETRY = 3
    WORKER = 4
    SERVER = 5  # keeps one third-party server


class Notice(enum.IntEnum):
    """What a control record says."""

    UP = 1  # a neighbour runs: child kind, slot, generation, pid
    GONE = 2  # a neighbour and its whole process tree are dead: + cause (Exit), status (wait status), value (job)
    PICTURE_END = 3  # every living neighbour has been named with UP; sent to a child right after its start
    DRAIN = 4  # take nothing new, finish what runs, then return 0 (value: seconds left)
    RESUME = 5  # take work again
    RELOAD = 6  # the configuration changed: read it again
    STOP = 7  # stop what runs and return 0

    READY = 16  # the child serves
    DRAINED = 17  # nothing runs in this child any more
    RECYCLE = 18  # replace this child when it returns (memory limit); not a failure. To a server: ask for that
    KILL = 19  # broker → supervisor: climb the ladder on slot + generation; cause says why. A server: on itself
    RELOAD_REQUEST = 20  # broker → supervisor: an operator asked for `reload`
    STOP_REQUEST = 21  # an operator asked for a stop with drain
    RECYCLE_SERVER = 22  # worker → supervisor: pass RECYCLE on to the server in slot + generation


class Exit(enum.IntEnum):
    """Why a child is gone, as the supervisor knows it."""

    CLEAN = 0  # asked to stop or drain, returned 0
    CRASHED = 1  # died by itself: non-zero exit, signal, memory limit
    HUNG = 2  # climbed the hang ladder
    DRAINED = 3  # rolled by reload, or recycled
    GPU_LOST = 4
    HOST_LOST = 5  # it belonged to an earlier supervisor or boot
    OUT_OF_MEMORY = 6  # its cgroup's memory limit


class Control(NamedTuple):
    """One control record."""

    notice: Notice
    kind: ChildKind = ChildKind.BROKER
    slot: int = 0
    generation: int = 0
    cause: int = 0
    pid: int = 0
    status: int = 0
    value: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """The record's bytes."""
        return _RECORD.pack(
            self.notice,
            self.kind,
            self.cause,
            self.flags,
            self.slot,
            self.generation,
            self.pid,
            self.status,
            self.value,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Control:
        """The record behind `pack`; ValueError when it is not one."""
        if len(data) != RECORD_BYTES:
            raise ValueError(f"a control record has {RECORD_BYTES} bytes, not {len(data)}")
        notice, kind, cause, flags, slot, generation, pid, status, value = _RECORD.unpack(data)
        return cls(Notice(notice), ChildKind(kind), slot, generation, cause, pid, status, value, flags)


class Child(NamedTuple):
    """All that a child is given when it is entered.

    `generation` is unique for ever within a state directory's life (supervisor's random 31 bits << 32 | count);
    a worker's incarnation is (name, generation). `control` is this child's end of its socketpair (non-blocking).
    `board_fd` and `evidence_fd` are open descriptors: the shared board, and the file (one per generation, under
    `runtime_dir/evidence/`) that gets stderr's tail and stack dumps.
    """

    kind: ChildKind
    name: str  # "broker", "web", "telemetry", "gpu0", "cpu-fast-0"
    slot: int  # this child's slot on the board
    generation: int
    control: socket.socket
    board_fd: int
    evidence_fd: int
    settings: Any  # empd.settings.Settings
    mapping: Any  # empd.mapping.Mapping
    worker_type: str = ""  # the mapping's worker entry, for workers; the service, for servers
    device: Device | None = None
    lap: int = 0  # which one of its kind on its GPU


def evidence_path(runtime_dir: Path, generation: int) -> Path:
    """Where a child's last words lie: bounded stderr tail and stack dumps."""
    return runtime_dir / "evidence" / f"{generation:016x}.log"


def send(control: socket.socket, record: Control) -> bool:
    """Sends one record without blocking; False when the peer is gone or its buffer is full."""
    try:
        return control.send(record.pack(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == RECORD_BYTES
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return False


def receive(control: socket.socket) -> list[Control] | None:
    """All records that have come, without blocking; None when the peer has closed."""
    records: list[Control] = []
    while True:
        try:
            data = control.recv(RECORD_BYTES * 2, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return records
        except ConnectionResetError:
            return None
        if not data:
            return records or None
        records.append(Control.unpack(data))


def parent_is_gone(parent_pid: int) -> bool:
    """True when the process was adopted since `parent_pid` forked it."""
    return os.getppid() != parent_pid
