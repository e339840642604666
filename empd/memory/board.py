"""The board: who is alive and what it does, in memory that all children of one supervisor share.

The supervisor creates it before its first fork; children attach to the inherited descriptor. It is always
readable, whoever is killed at whatever instant (see layout), and carries only what may be lost.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any, Generic, NamedTuple, TypeVar, overload

from empd.memory import layout
from empd.memory.layout import UNKNOWN, Activity, Gauges, Identity, SlotState

__all__ = [
    "UNKNOWN",
    "Activity",
    "ActivityWriter",
    "Board",
    "Gauges",
    "GroupWriter",
    "Identity",
    "SlotState",
    "SlotView",
]

G = TypeVar("G")

_READ_TRIES_MAX = 100


class SlotView(NamedTuple):
    """One slot as it was read; a group is None until its writer has written it once."""

    identity: Identity | None
    activity: Activity | None
    gauges: Gauges | None

    @property
    def own_activity(self) -> Activity | None:
        """The activity, unless it is what the slot's former generation left behind."""
        if self.activity is None or self.identity is None:
            return None
        return self.activity if self.activity.heartbeat_mono_ns >= self.identity.started_mono_ns else None


class GroupWriter(Generic[G]):
    """The one writer of one field group of one slot; not for use from two threads at once.

    It goes on counting where the former writer, however it ended, left the slot.
    """

    def __init__(self, memory: mmap.mmap, group: layout.Group[G], slot: int) -> None:
        self._memory = memory
        self._group = group
        self._buffer = bytearray(group.copy_bytes)
        self._copies = (group.copy_at(slot, 0), group.copy_at(slot, 1))
        found = _newest(memory, group, slot)
        self._sequence = found[0] if found else 0

    def write(self, value: G) -> None:
        """Replaces the group. Raises struct.error when a number does not fit its field."""
        sequence = self._sequence + 1
        self._group.pack(self._buffer, sequence, value)
        self._publish(sequence)

    def _publish(self, sequence: int) -> None:
        at = self._copies[sequence & 1]
        self._memory[at : at + len(self._buffer)] = self._buffer
        self._sequence = sequence


class ActivityWriter(GroupWriter[Activity]):
    """A child's own writer, with a fast path for the heartbeat."""

    def __init__(self, memory: mmap.mmap, slot: int) -> None:
        super().__init__(memory, layout.ACTIVITY, slot)
        self._group.pack(self._buffer, self._sequence, Activity())

    def beat(self, mono_ns: int) -> None:
        """Writes the heartbeat time; all else stays as this writer last wrote it."""
        sequence = self._sequence + 1
        layout.set_heartbeat(self._buffer, mono_ns)
        self._group.seal(self._buffer, sequence)
        self._publish(sequence)


class Board:
    """Slots of 1 KiB, one for each child, in one shared mapping. `fd` is its descriptor, `slots` their number."""

    def __init__(self, fd: int, slots: int, *, owns_fd: bool) -> None:
        self.fd = fd
        self.slots = slots
        self._owns_fd = owns_fd
        self._memory = mmap.mmap(fd, _size(slots))

    @classmethod
    def create(cls, slots: int = 64) -> Board:
        """A new board in a memfd, closed on exec. Sealed against resizing, so that nobody can make a reader fault."""
        if slots < 1:
            raise ValueError(f"a board has at least one slot, not {slots}")
        fd = os.memfd_create("empd-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size(slots))
            os.pwrite(fd, layout.HEADER.pack(layout.MAGIC, layout.VERSION, slots), 0)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(fd, slots, owns_fd=True)
        except BaseException:  # whatever went wrong, the descriptor must not stay open
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Board:
        """The board behind an inherited descriptor, which stays the caller's. Raises ValueError if it is none."""
        header = os.pread(fd, layout.HEADER.size, 0)
        if len(header) < layout.HEADER.size:
            raise ValueError(f"descriptor {fd} is not a board: it has no header")
        magic, version, slots = layout.HEADER.unpack(header)
        if magic != layout.MAGIC or version != layout.VERSION or os.fstat(fd).st_size != _size(slots):
            raise ValueError(f"descriptor {fd} is not a board of layout {layout.VERSION}")
        return cls(fd, slots, owns_fd=False)

    @overload
    def writer(self, slot: int, group: type[Activity]) -> ActivityWriter: ...
    @overload
    def writer(self, slot: int, group: type[Identity]) -> GroupWriter[Identity]: ...
    @overload
    def writer(self, slot: int, group: type[Gauges]) -> GroupWriter[Gauges]: ...

    def writer(self, slot: int, group: Any) -> Any:
        """The writer of one group of a slot; the caller sees to it that there is only one. IndexError: no such slot."""
        self._check(slot)
        if group is Activity:
            return ActivityWriter(self._memory, slot)
        if group is Identity:
            return GroupWriter(self._memory, layout.IDENTITY, slot)
        return GroupWriter(self._memory, layout.GAUGES, slot)

    def read(self, slot: int) -> SlotView:
        """All three groups of a slot, each the newest whole copy. IndexError: no such slot."""
        self._check(slot)
        return SlotView(
            self._value(layout.IDENTITY, slot), self._value(layout.ACTIVITY, slot), self._value(layout.GAUGES, slot)
        )

    def read_taken(self) -> list[SlotView]:
        """The slots that somebody sits in, in order; a board is mostly empty."""
        return [
            SlotView(identity, self._value(layout.ACTIVITY, slot), self._value(layout.GAUGES, slot))
            for slot in range(self.slots)
            if (identity := self._value(layout.IDENTITY, slot)) is not None and identity.state is not SlotState.EMPTY
        ]

    def close(self) -> None:
        """Unmaps the board, and closes the descriptor if this object made it. Closing twice is fine."""
        self._memory.close()
        if self._owns_fd:
            self._owns_fd = False
            os.close(self.fd)

    def _value(self, group: layout.Group[G], slot: int) -> G | None:
        found = _newest(self._memory, group, slot)
        return found[1] if found else None

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} is not on a board of {self.slots}")


def _newest(memory: mmap.mmap, group: layout.Group[G], slot: int) -> tuple[int, G] | None:
    """The newest whole copy. None: never written, or (after 100 looks) written faster than it can be read."""
    at = group.pair_at(slot)
    before = group.never_written
    for _ in range(_READ_TRIES_MAX):
        pair = memory[at : at + group.pair_bytes]
        # Bytes that stay the same between two looks are nobody's write in progress: looking again changes nothing.
        if pair == before:
            return None
        found = group.newest(pair)
        if found:
            return found
        before = pair
    return None


def _size(slots: int) -> int:
    return layout.HEADER_BYTES + slots * layout.SLOT_BYTES
