"""A child's process tree: how it is fenced in, killed whole, and seen to be empty.

Two ways behind one set of methods. `Cgroups` holds whatever the child's descendants do. `ProcessGroups` is the
fallback without delegation, and covers descendants that stay in the child's session. A child is the leader of its
session, so its session id is its pid.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Protocol

from empd.processes import session_members
from empd.supervisor.sentinel import Sentinel

_log = logging.getLogger("empd.supervisor")
_DELEGATE_MARKS = ("user.delegate", "trusted.delegate")


class Trees(Protocol):
    """What the supervisor needs to know of process trees. `name` is the child's, `session` its pid."""

    mode: str  # "cgroup" or "process_group", as `status` shows it

    def prepare(self, name: str, memory_bytes_max: int) -> None:
        """Before the fork. `memory_bytes_max` 0: no limit."""

    def enter(self, name: str) -> None:
        """In the child, before it can fork."""

    def admit(self, name: str, session: int) -> None:
        """In the supervisor, after the fork."""

    def kill(self, name: str, session: int) -> None:
        """SIGKILL to every process of the tree."""

    def is_empty(self, name: str, session: int) -> bool:
        """No process of the tree can run any more; the leader itself may be an unreaped zombie."""

    def out_of_memory(self, name: str) -> bool:
        """The kernel killed in this tree because of its memory limit."""

    def remove(self, name: str, session: int) -> None:
        """After the tree is empty."""


class ProcessGroups:
    """Sessions and process groups, without any help from the system."""

    mode = "process_group"

    def __init__(self) -> None:
        self._sentinel = Sentinel(self._end)

    def prepare(self, name: str, memory_bytes_max: int) -> None: ...

    def enter(self, name: str) -> None: ...

    def admit(self, name: str, session: int) -> None:
        self._sentinel.add(session)

    def kill(self, name: str, session: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)
        for pid in session_members(session):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def is_empty(self, name: str, session: int) -> bool:
        return not session_members(session)

    def out_of_memory(self, name: str) -> bool:
        return False

    def remove(self, name: str, session: int) -> None:
        self._sentinel.drop(session)

    def _end(self, session: int) -> bool:
        self.kill("", session)
        return self.is_empty("", session)


class Cgroups:
    """One cgroup (v2) for each child below a delegated `root`, the supervisor itself in the leaf `supervisor`."""

    mode = "cgroup"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fallback = ProcessGroups()
        leaf = root / "supervisor"
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        controllers = (root / "cgroup.controllers").read_text().split()
        self._limits_memory = "memory" in controllers
        self._has_warned = False
        if self._limits_memory:
            (root / "cgroup.subtree_control").write_text("+memory")

    def prepare(self, name: str, memory_bytes_max: int) -> None:
        group = self._root / name
        self._clear(name)
        group.mkdir(exist_ok=True)
        if self._limits_memory:
            (group / "memory.max").write_text(str(memory_bytes_max or "max"))
            # A worker that lost one process of its tree to the limit is of no use: all of it goes.
            (group / "memory.oom.group").write_text("1")
        elif memory_bytes_max and not self._has_warned:
            self._has_warned = True
            _log.warning("memory limits are not enforced: no memory controller is delegated")

    def enter(self, name: str) -> None:
        (self._root / name / "cgroup.procs").write_text("0")

    def kill(self, name: str, session: int) -> None:
        try:
            (self._root / name / "cgroup.kill").write_text("1")
        except OSError:
            # Kernels before 5.14 have no cgroup.kill, and a child that died early never entered.
            self._fallback.kill(name, session)

    def is_empty(self, name: str, session: int) -> bool:
        return _field(self._root / name / "cgroup.events", "populated") == 0

    def out_of_memory(self, name: str) -> bool:
        return _field(self._root / name / "memory.events", "oom_kill") > 0

    def admit(self, name: str, session: int) -> None: ...

    def remove(self, name: str, session: int) -> None:
        self._clear(name)

    def _clear(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._root / name).rmdir()


def _field(path: Path, key: str) -> int:
    """One number of a flat keyed file; 0 when it is not there."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def detect() -> Trees:
    """Cgroups where systemd delegated one to this service, else process groups."""
    root = _own_cgroup()
    if root is None or not _is_delegated(root):
        return ProcessGroups()
    try:
        return Cgroups(root)
    except OSError as error:
        _log.warning("cgroup %s is not usable (%s): process groups are used", root, error)
        return ProcessGroups()


def _own_cgroup() -> Path | None:
    path = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    if path is None:
        return None
    for line in _lines("/proc/self/mountinfo"):
        fields, _, filesystem = line.partition(" - ")
        if filesystem.startswith("cgroup2 "):
            return Path(fields.split()[4] + path)
    return None


def _is_delegated(root: Path) -> bool:
    """systemd marks what it delegates, and gives it to the user. Being able to write is no leave: root always is."""
    with contextlib.suppress(OSError):
        if root.stat().st_uid == os.geteuid() != 0:
            return True
    for mark in _DELEGATE_MARKS:
        with contextlib.suppress(OSError):
            return os.getxattr(root, mark) == b"1"
    return False


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
