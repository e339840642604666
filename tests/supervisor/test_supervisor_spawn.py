"""What a fork carries over and what it sheds; and how long a replacement takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervisor_daemon import HERE, ROOT

from empd.supervisor.descriptors import close_all_but
from empd.supervisor.preload import preload

# Runs in a process of its own: it must begin with one thread and three descriptors.
CENSUS = """
import json, os, sys
from pathlib import Path
from empd.lifecycle import ChildKind
from empd.memory.board import Board
from empd import prctl
from empd.supervisor import spawn
from empd.supervisor.children import Spec
from empd.supervisor.kinds import Kind
from empd.supervisor.preload import preload
from empd.supervisor.restart import Policy
from empd.supervisor.signals import Signals
from empd.supervisor.trees import ProcessGroups

def census():
    links = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            links[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # the listing's own
    return {"threads": len(os.listdir("/proc/self/task")), "fds": links}

def main(child):
    kept = {0, 1, 2, child.control.fileno(), child.board_fd, child.evidence_fd}
    found = census()
    found["foreign"] = {fd: link for fd, link in found["fds"].items() if fd not in kept}
    found["session"] = os.getsid(0) == os.getpid()
    Path(sys.argv[1], f"child-{child.name}").write_text(json.dumps(found))
    return 0

def run(folder):
    wrong = preload(("zmq", "msgspec", "uvloop", "aiohttp", "sqlite3"))
    reports = {"wrong": wrong, "preloaded": census()}
    signals = Signals()
    board = Board.create(8)
    sockets = []
    for index in range(100):
        place = spawn.Place(0, index + 1, Path(folder), board.fd, None, None)
        spec = Spec(ChildKind.WORKER, f"w-{index}")
        made = spawn.spawn(spec, Kind("__main__:main", Policy()), place, ProcessGroups(), 0, sockets)
        sockets.append(made.control)
        assert os.waitpid(made.pid, 0)[1] == 0
        os.close(made.pidfd)
    for control in sockets:
        control.close()
    reports["forked"] = census()
    print(json.dumps(reports))

if __name__ == "__main__":
    run(sys.argv[1])
"""


def test_one_thread_and_known_descriptors_after_preload_and_after_100_forks(folder: Path):
    script = folder / "census.py"
    script.write_text(CENSUS)
    ran = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    reports = json.loads(ran.stdout)
    assert reports["wrong"] == []
    assert reports["preloaded"]["threads"] == 1
    assert set(reports["preloaded"]["fds"]) == {"0", "1", "2"}
    assert reports["forked"]["threads"] == 1
    added = [link for fd, link in reports["forked"]["fds"].items() if fd not in ("0", "1", "2")]
    assert sorted(link.split(":")[0] for link in added) == [
        "/memfd", "/memfd", "pipe", "pipe",
    ]  # fmt: skip
    for index in range(100):
        child = json.loads((folder / f"child-w-{index}").read_text())
        assert child["foreign"] == {}
        assert child["session"]
        assert child["threads"] == 1


def test_preload_names_what_cannot_be_imported_and_what_starts_a_thread(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "preload_breaks.py").write_text("1 / 0")
    (folder / "preload_threads.py").write_text(
        "import threading\nstop = threading.Event()\nthread = threading.Thread(target=stop.wait)\nthread.start()\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    try:
        wrong = preload(("json", "no_such_module", "preload_breaks", "preload_threads"))
    finally:
        module = sys.modules["preload_threads"]
        module.stop.set()
        module.thread.join()
    assert [line.split(":")[0] for line in wrong] == ["no_such_module", "preload_breaks", "preload_threads"]
    assert "ZeroDivisionError" in wrong[1]
    assert "starts a thread" in wrong[2]


def test_close_all_but_closes_all_but(folder: Path):
    kept = os.open(folder, os.O_RDONLY)
    shed = [os.open(folder, os.O_RDONLY) for _ in range(5)]
    pid = os.fork()
    if pid == 0:
        close_all_but((0, 1, 2, kept))
        left = [fd for fd in (*shed, kept) if Path(f"/proc/self/fd/{fd}").exists()]
        os._exit(0 if left == [kept] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (*shed, kept):
        os.close(fd)
