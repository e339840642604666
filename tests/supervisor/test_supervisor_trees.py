"""Process trees: killed whole, seen to be empty; with process groups and with (a stand-in for) cgroups."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from supervisor_children import fork_sleeper

from empd import prctl
from empd.processes import session_members
from empd.supervisor import trees
from empd.supervisor.trees import Cgroups, ProcessGroups
from tests.box import is_alive, wait_until


@pytest.fixture
def leader():
    """A session leader with a child of its own and a grandchild in another process group."""
    code = (
        "import os, sys, signal\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    grandchild = os.fork()\n"
        "    if grandchild == 0:\n"
        "        os.setpgid(0, 0)\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        print(os.getpid(), flush=True)\n"
        "    signal.pause()\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    yield process, grandchild
    for pid in (*session_members(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_session_is_found_whole_and_killed_whole(leader):
    process, grandchild = leader
    groups = ProcessGroups()
    members = session_members(process.pid)
    assert len(members) == 3
    assert {process.pid, grandchild} <= set(members)
    assert not groups.is_empty("w", process.pid)
    groups.kill("w", process.pid)
    # The leader is still a zombie of ours then: that does not count.
    wait_until(lambda: groups.is_empty("w", process.pid), "the tree to be empty")
    assert not is_alive(grandchild)


def test_killing_a_tree_spares_other_sessions(leader):
    process, _ = leader
    bystander = fork_sleeper(own_session=True)
    wait_until(lambda: os.getsid(bystander) == bystander, "the bystander's session")
    ProcessGroups().kill("w", process.pid)
    wait_until(lambda: not session_members(process.pid), "the tree to be empty")
    assert is_alive(bystander)
    os.kill(bystander, signal.SIGKILL)
    os.waitpid(bystander, 0)


def test_names_with_parentheses_do_not_confuse_the_reader():
    pid = os.fork()
    if pid == 0:
        prctl.set_name("a) Z 1 (b")
        os.setsid()
        signal.pause()
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "a) Z 1 (b\n", "the name")
    wait_until(lambda: list(session_members(pid)) == [pid], "the session to be seen")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_being_able_to_write_is_not_taken_for_delegation(cgroup: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trees, "_own_cgroup", lambda: cgroup)
    monkeypatch.setattr(trees.os, "geteuid", lambda: 0)
    assert trees.detect().mode == "process_group"
    assert not (cgroup / "supervisor").exists()
    marks = {"trusted.delegate": b"1"}

    def getxattr(path: Path, name: str) -> bytes:
        if name not in marks:
            raise OSError(errno.ENODATA, "no such attribute")
        return marks[name]

    monkeypatch.setattr(trees.os, "getxattr", getxattr)
    assert trees.detect().mode == "cgroup"
    assert (cgroup / "supervisor").exists()


def test_a_group_of_ones_own_is_delegated_without_a_mark(cgroup: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trees, "_own_cgroup", lambda: cgroup)
    monkeypatch.setattr(trees.os, "geteuid", lambda: os.stat(cgroup).st_uid + 1)
    assert trees.detect().mode == "process_group"
    whose = types.SimpleNamespace(st_uid=4711)
    monkeypatch.setattr(Path, "stat", lambda self, **_: whose if self == cgroup else os.stat(self))
    monkeypatch.setattr(trees.os, "geteuid", lambda: 4711)
    assert trees.detect().mode == "cgroup"


def test_a_delegated_group_that_cannot_be_used_is_no_reason_to_fail(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trees, "_own_cgroup", lambda: folder / "gone")
    monkeypatch.setattr(trees.os, "getxattr", lambda path, name: b"1")
    assert trees.detect().mode == "process_group"


@pytest.fixture
def cgroup(folder: Path) -> Path:
    """A directory with the files of a delegated cgroup."""
    (folder / "cgroup.controllers").write_text("cpu memory pids\n")
    (folder / "cgroup.subtree_control").write_text("")
    return folder


def test_the_supervisor_gets_a_leaf_and_every_child_a_group_of_its_own(cgroup: Path):
    groups = Cgroups(cgroup)
    assert groups.mode == "cgroup"
    assert (cgroup / "supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    assert (cgroup / "cgroup.subtree_control").read_text() == "+memory"

    groups.prepare("gpu0", 1 << 30)
    assert (cgroup / "gpu0" / "memory.max").read_text() == str(1 << 30)
    assert (cgroup / "gpu0" / "memory.oom.group").read_text() == "1"
    groups.enter("gpu0")
    assert (cgroup / "gpu0" / "cgroup.procs").read_text() == "0"
    groups.kill("gpu0", 0)
    assert (cgroup / "gpu0" / "cgroup.kill").read_text() == "1"


def test_emptiness_and_lack_of_memory_are_read_from_the_group(cgroup: Path):
    groups = Cgroups(cgroup)
    groups.prepare("gpu0", 0)
    assert (cgroup / "gpu0" / "memory.max").read_text() == "max"
    events, memory = cgroup / "gpu0" / "cgroup.events", cgroup / "gpu0" / "memory.events"
    events.write_text("populated 1\nfrozen 0\n")
    memory.write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 0\noom_group_kill 0\n")
    assert not groups.is_empty("gpu0", 0)
    assert not groups.out_of_memory("gpu0")
    events.write_text("populated 0\nfrozen 0\n")
    memory.write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n")
    assert groups.is_empty("gpu0", 0)
    assert groups.out_of_memory("gpu0")
    assert groups.is_empty("never-was", 0)


def test_without_a_memory_controller_a_limit_is_said_not_to_hold(cgroup: Path, caplog: pytest.LogCaptureFixture):
    (cgroup / "cgroup.controllers").write_text("\n")
    groups = Cgroups(cgroup)
    groups.prepare("gpu0", 1 << 30)
    groups.prepare("gpu1", 1 << 30)
    assert caplog.text.count("memory limits are not enforced") == 1
    assert not (cgroup / "gpu0" / "memory.max").exists()


def test_a_child_that_never_entered_its_group_is_killed_by_its_session(cgroup: Path, leader):
    process, _ = leader
    groups = Cgroups(cgroup)
    groups.kill("no-such-group", process.pid)
    wait_until(lambda: not session_members(process.pid), "the tree to be empty")
