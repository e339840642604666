"""The table of children: what each is meant to be, and what it is now. Plain data, so that it can outlive an exec."""

from __future__ import annotations

import collections
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from empd.device import Device
from empd.lifecycle import ChildKind, Control, Exit
from empd.supervisor.restart import LIVE, Goal, Life, State


class Spec(NamedTuple):
    """What a child is meant to be. `name` is unique; a worker has its mapping entry and perhaps a device.

    A server has its service as `worker_type`; while `fingerprint` stays the same, a reload leaves it alone.
    """

    kind: ChildKind
    name: str
    worker_type: str = ""
    device: Device | None = None
    lap: int = 0
    fingerprint: str = ""


@dataclass(slots=True)
class Member:
    """One child: its spec, its life in the restart table, and its present process if it has one."""

    spec: Spec
    slot: int
    life: Life = field(default_factory=Life)
    generation: int = 0
    pid: int = 0
    pidfd: int = -1
    control: socket.socket | None = None
    started_ns: int = 0
    ready_ns: int = 0  # 0 = this generation has not been READY
    since_ns: int = 0  # when it came into its present state
    restarts: int = 0
    last_exit: Exit | None = None
    last_status: int = 0
    condemned: Exit | None = None  # why the ladder runs
    died: int | None = None  # the leader's wait status, while its tree is being emptied
    died_ns: int = 0
    outbox: collections.deque[Control] = field(default_factory=collections.deque)

    @property
    def is_live(self) -> bool:
        """It has a process."""
        return self.life.state in LIVE

    def to_record(self) -> dict[str, Any]:
        """What is needed to find the child again in another program image with the same descriptors."""
        return {
            "kind": int(self.spec.kind),
            "name": self.spec.name,
            "worker_type": self.spec.worker_type,
            "device": None if self.spec.device is None else msgspec.to_builtins(self.spec.device),
            "lap": self.spec.lap,
            "fingerprint": self.spec.fingerprint,
            "slot": self.slot,
            "life": [int(value) if not isinstance(value, tuple) else list(value) for value in self.life],
            "generation": self.generation,
            "pid": self.pid,
            "pidfd": self.pidfd,
            "control_fd": -1 if self.control is None else self.control.fileno(),
            "started_ns": self.started_ns,
            "ready_ns": self.ready_ns,
            "since_ns": self.since_ns,
            "restarts": self.restarts,
            "last_exit": None if self.last_exit is None else int(self.last_exit),
            "last_status": self.last_status,
            "condemned": None if self.condemned is None else int(self.condemned),
            "outbox": [record.pack().hex() for record in self.outbox],
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Member:
        """The member behind `to_record`; takes over the descriptors that it names."""
        device = record["device"]
        spec = Spec(
            ChildKind(record["kind"]),
            record["name"],
            record["worker_type"],
            None if device is None else msgspec.convert(device, Device),
            record["lap"],
            record["fingerprint"],
        )
        state, goal, until_ns, failures, streak, opens, blamed = record["life"]
        control_fd = record["control_fd"]
        return cls(
            spec=spec,
            slot=record["slot"],
            life=Life(State(state), Goal(goal), until_ns, tuple(failures), streak, opens, bool(blamed)),
            generation=record["generation"],
            pid=record["pid"],
            pidfd=record["pidfd"],
            control=None if control_fd < 0 else socket.socket(fileno=control_fd),
            started_ns=record["started_ns"],
            ready_ns=record["ready_ns"],
            since_ns=record["since_ns"],
            restarts=record["restarts"],
            last_exit=None if record["last_exit"] is None else Exit(record["last_exit"]),
            last_status=record["last_status"],
            condemned=None if record["condemned"] is None else Exit(record["condemned"]),
            outbox=collections.deque(Control.unpack(bytes.fromhex(each)) for each in record["outbox"]),
        )


class Children:
    """All members, in the order in which they start. Slots and generations are given out here."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._members: dict[str, Member] = {}
        # 31 random bits tell the generations of two supervisors apart; a signed 64-bit field holds all of it.
        self._series = int.from_bytes(os.urandom(4), "big") >> 1
        self._count = 0

    def add(self, spec: Spec) -> Member:
        """A new member, down. Raises ValueError when the name is taken or the board is full."""
        if spec.name in self._members:
            raise ValueError(f"there is already a child {spec.name!r}")
        taken = {member.slot for member in self}
        slot = next((slot for slot in range(self._slots) if slot not in taken), None)
        if slot is None:
            raise ValueError(f"no room for {spec.name!r}: the board has {self._slots} slots")
        member = self._members[spec.name] = Member(spec, slot)
        return member

    def remove(self, member: Member) -> None:
        """Forgets a member that is down; its slot is free again."""
        del self._members[member.spec.name]

    def next_generation(self) -> int:
        """Never given out before, by this supervisor or (with 31 random bits' certainty) by another one."""
        self._count += 1
        return self._series << 32 | self._count

    def get(self, name: str) -> Member | None:
        """The member of this name."""
        return self._members.get(name)

    def of(self, kinds: Iterable[ChildKind]) -> list[Member]:
        """The members of these kinds."""
        wanted = frozenset(kinds)
        return [member for member in self if member.spec.kind in wanted]

    def find(self, slot: int, generation: int) -> Member | None:
        """The member that holds the slot, if it still is of this generation."""
        return next((each for each in self if each.slot == slot and each.generation == generation), None)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def to_records(self) -> dict[str, Any]:
        """The whole table as plain data."""
        return {
            "slots": self._slots,
            "series": self._series,
            "count": self._count,
            "members": [member.to_record() for member in self],
        }

    @classmethod
    def from_records(cls, records: dict[str, Any]) -> Children:
        """The table behind `to_records`."""
        children = cls(records["slots"])
        children._series, children._count = records["series"], records["count"]
        for record in records["members"]:
            member = Member.from_record(record)
            children._members[member.spec.name] = member
        return children
