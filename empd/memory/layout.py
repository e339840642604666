"""The board's bytes. Offsets are known here and nowhere else; numbers are little-endian, times monotonic ns.

    board    0         1024      2048
             header    slot 0    slot 1    …

    header   0         8         12        16
             magic     version   slots     zeros

    slot     0           192         384         576         768       896       1024
             identity A  identity B  activity A  activity B  gauges A  gauges B
             └─ supervisor ────────┘ └─ the child ─────────┘ └─ telemetry ─────┘

    copy     0         8         8 + n     12 + n
             sequence  body      crc32     unused

Each field group has one writer, which counts its writes in `sequence` (from 1) and puts write s into copy A
when s is even, into copy B when s is odd. The newest whole copy is thus never the one being overwritten: a
writer killed at any instruction spoils at most the copy it was writing, and the other one still fits its crc.

Memory order: there is no barrier, and none is needed for safety. x86 shows the stores of one process in their
order, arm may show them in any. A reader that meets a half-visible copy sees a crc (over sequence and body)
that does not fit, and takes the other copy; where the writer laps the reader both may be half-visible, and the
reader looks again. All zeros do not fit either, so an unwritten copy needs no flag. A torn copy passes for
whole with probability 2⁻³², which is why the board carries only what may be lost.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from empd.lifecycle import ChildKind, Exit

MAGIC = b"EMPDBRD\0"
VERSION = 2
HEADER = struct.Struct("<8sII")
HEADER_BYTES = 1024
SLOT_BYTES = 1024
TEXT_BYTES_MAX = 48
SPARES = 8
UNKNOWN = -1
"""A gauge that the device does not report."""

_SEQUENCE = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_NO_EXIT = 255


class SlotState(enum.IntEnum):
    """Where a child stands in the supervisor's table."""

    EMPTY = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    STOPPING = 4
    KILLING = 5  # climbs the hang ladder
    BACKOFF = 6  # dead, waits for its restart
    CIRCUIT_OPEN = 7  # restart budget spent, waits for a probe
    PROBING = 8  # half-open: one restart on trial
    DEAD = 9  # will not come back by itself


class Identity(NamedTuple):
    """Who sits in the slot; written by the supervisor. Texts are cut at 48 UTF-8 bytes.

    `restarts` counts this slot's restarts; `last_exit` and `last_wait_status` are of the generation before.
    """

    kind: ChildKind
    name: str
    pid: int = 0
    generation: int = 0
    state: SlotState = SlotState.STARTING
    started_mono_ns: int = 0
    restarts: int = 0
    last_exit: Exit | None = None
    last_wait_status: int = 0
    device_uuid: str = ""
    virtual: bool = False


class Activity(NamedTuple):
    """What the child does; written by the child. `job_id` 0: nothing runs.

    `progress` is a fraction 0…1, `progress_mono_ns` the last time that the job moved. `spares` are counters or
    gauges for later, 8 unsigned 64-bit integers.
    """

    heartbeat_mono_ns: int = 0
    job_id: int = 0
    epoch: int = 0
    progress: float = 0.0
    progress_mono_ns: int = 0
    jobs_running: int = 0
    jobs_done: int = 0
    jobs_failed: int = 0
    rss_bytes: int = 0
    spares: tuple[int, ...] = (0,) * SPARES


class Gauges(NamedTuple):
    """How the child's GPU fares; written by telemetry. UNKNOWN (-1): the device does not report it.

    `throttle_reasons` is NVML's bit set, `xid` the last one seen (0: none), `flags` telemetry's own bits,
    `processes_memory_bytes` what this child's own processes hold of the GPU's memory (servers only).
    """

    at_mono_ns: int = 0
    utilisation_percent: int = UNKNOWN
    memory_used_bytes: int = UNKNOWN
    memory_total_bytes: int = UNKNOWN
    temperature_c: int = UNKNOWN
    power_mw: int = UNKNOWN
    energy_mj: int = UNKNOWN
    throttle_reasons: int = 0
    ecc_errors: int = UNKNOWN
    xid: int = 0
    flags: int = 0
    processes_memory_bytes: int = UNKNOWN


G = TypeVar("G")


class Group(Generic[G]):
    """One field group: where its two copies lie in a slot, and how its body is packed."""

    def __init__(
        self,
        offset: int,
        copy_spacing: int,
        body: str,
        fields: Callable[[G], tuple[Any, ...]],
        build: Callable[[tuple[Any, ...]], G],
    ) -> None:
        self.body = struct.Struct(body)
        self.fields = fields
        self.build = build
        self.offset = offset
        self.copy_spacing = copy_spacing
        self.crc_at = _SEQUENCE.size + self.body.size
        self.copy_bytes = self.crc_at + _CRC.size
        self.pair_bytes = copy_spacing + self.copy_bytes
        self.never_written = bytes(self.pair_bytes)
        if self.copy_bytes > copy_spacing:
            raise ValueError(f"a copy of {self.copy_bytes} bytes does not fit in {copy_spacing}")

    def pair_at(self, slot: int) -> int:
        """Offset in the board of the slot's copy A; copy B follows `copy_spacing` later."""
        return HEADER_BYTES + slot * SLOT_BYTES + self.offset

    def copy_at(self, slot: int, sequence: int) -> int:
        """Offset in the board of the copy that write number `sequence` goes to."""
        return self.pair_at(slot) + (sequence & 1) * self.copy_spacing

    def pack(self, buffer: bytearray, sequence: int, value: G) -> None:
        """Fills `buffer` (`copy_bytes` long) with a whole copy."""
        self.body.pack_into(buffer, _SEQUENCE.size, *self.fields(value))
        self.seal(buffer, sequence)

    def seal(self, buffer: bytearray, sequence: int) -> None:
        """Numbers the copy in `buffer` and sets its crc to match."""
        _SEQUENCE.pack_into(buffer, 0, sequence)
        _CRC.pack_into(buffer, self.crc_at, zlib.crc32(memoryview(buffer)[: self.crc_at]))

    def newest(self, pair: bytes) -> tuple[int, G] | None:
        """(sequence, value) of the newest copy in `pair` (`pair_bytes` long) that is whole; None if neither is."""
        first, second = _SEQUENCE.unpack_from(pair, 0)[0], _SEQUENCE.unpack_from(pair, self.copy_spacing)[0]
        order = (0, self.copy_spacing) if first >= second else (self.copy_spacing, 0)
        for at in order:
            crc_at = at + self.crc_at
            if zlib.crc32(memoryview(pair)[at:crc_at]) == _CRC.unpack_from(pair, crc_at)[0]:
                fields = self.body.unpack_from(pair, at + _SEQUENCE.size)
                return (first if at == 0 else second), self.build(fields)
        return None


def set_heartbeat(buffer: bytearray, mono_ns: int) -> None:
    """Changes `heartbeat_mono_ns` (the body's first field) of a packed Activity; the copy must be sealed again."""
    _SEQUENCE.pack_into(buffer, _SEQUENCE.size, mono_ns)


def _cut(text: str) -> bytes:
    """The text's UTF-8 bytes, at most 48 of them, never ending inside a character."""
    return text.encode()[:TEXT_BYTES_MAX].decode(errors="ignore").encode()


def _identity_fields(value: Identity) -> tuple[Any, ...]:
    return (
        value.kind,
        value.state,
        _NO_EXIT if value.last_exit is None else value.last_exit,
        value.virtual,
        value.pid,
        value.last_wait_status,
        value.restarts,
        value.generation,
        value.started_mono_ns,
        _cut(value.name),
        _cut(value.device_uuid),
    )


def _build_identity(fields: tuple[Any, ...]) -> Identity:
    kind, state, last_exit, virtual, pid, wait_status, restarts, generation, started, name, uuid = fields
    return Identity(
        kind=ChildKind(kind),
        name=name.rstrip(b"\0").decode(),
        pid=pid,
        generation=generation,
        state=SlotState(state),
        started_mono_ns=started,
        restarts=restarts,
        last_exit=None if last_exit == _NO_EXIT else Exit(last_exit),
        last_wait_status=wait_status,
        device_uuid=uuid.rstrip(b"\0").decode(),
        virtual=virtual,
    )


IDENTITY: Group[Identity] = Group(0, 192, "<BBB?iiIQQ48s48s", _identity_fields, _build_identity)
ACTIVITY: Group[Activity] = Group(
    384,
    192,
    "<QQQdQQQQQ8Q",
    lambda value: (*value[:-1], *value.spares),
    lambda fields: Activity._make((*fields[:-SPARES], fields[-SPARES:])),
)
GAUGES: Group[Gauges] = Group(768, 128, "<12q", tuple, lambda fields: Gauges(*fields))
