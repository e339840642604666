"""From the supervisor's process to a child's entry: the fork, and everything the child sheds before it is entered."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from empd import prctl
from empd.lifecycle import Child, parent_is_gone
from empd.supervisor import evidence
from empd.supervisor.children import Spec
from empd.supervisor.descriptors import close_all_but
from empd.supervisor.kinds import Kind
from empd.supervisor.signals import forget_in_child
from empd.supervisor.trees import Trees

EXIT_SOFTWARE = 70
EXIT_ORPHAN = 71
_PRIVATE_ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Place(NamedTuple):
    """Where a new child gets: its slot, generation and surroundings."""

    slot: int
    generation: int
    runtime_dir: Path
    board_fd: int
    settings: Any
    mapping: Any


class Spawned(NamedTuple):
    """The supervisor's side of a new child."""

    pid: int
    pidfd: int
    control: socket.socket


def spawn(
    spec: Spec, kind: Kind, place: Place, trees: Trees, memory_bytes_max: int, foreign: Iterable[socket.socket]
) -> Spawned:
    """Forks a child and enters it. `foreign` are the sockets of the other children. Raises OSError if it cannot."""
    trees.prepare(spec.name, memory_bytes_max)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    evidence_fd = -1
    try:
        evidence_fd = evidence.open_for(place.runtime_dir, place.generation)
        for end in (ours, theirs):
            end.setblocking(False)
        child = Child(
            spec.kind, spec.name, place.slot, place.generation, theirs, place.board_fd, evidence_fd,
            place.settings, place.mapping, spec.worker_type, spec.device, spec.lap,
        )  # fmt: skip
        parent_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing may be delivered to the child before it has shed the supervisor's handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _be_child(child, kind, parent_pid, trees, (ours, *foreign))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            return Spawned(pid, os.pidfd_open(pid), ours)
        except OSError:
            # A child that cannot be watched must not live.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        if evidence_fd >= 0:
            os.close(evidence_fd)


def _be_child(child: Child, kind: Kind, parent_pid: int, trees: Trees, foreign: Iterable[socket.socket]) -> NoReturn:
    """Never returns: the supervisor's frames below must not run in the child."""
    status = EXIT_SOFTWARE
    try:
        _leave_parent(child, parent_pid, trees, foreign)
        _prepare(child, kind, parent_pid)
        status = enter(kind.entry, child)
    except BaseException:  # the last frame of this process: it is said, and the exit status tells the supervisor
        _say_why(child.evidence_fd)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _leave_parent(child: Child, parent_pid: int, trees: Trees, foreign: Iterable[socket.socket]) -> None:
    prctl.die_with_parent()
    if parent_is_gone(parent_pid):
        # It died between the fork and the line above: the kernel will not tell.
        os._exit(EXIT_ORPHAN)
    os.setsid()
    trees.enter(child.name)
    for other in foreign:
        # Their numbers are about to be closed and used again: no object may close them later.
        other.detach()
    close_all_but((0, 1, 2, child.control.fileno(), child.board_fd, child.evidence_fd))
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.close(null_fd)
    forget_in_child()


def _prepare(child: Child, kind: Kind, parent_pid: int) -> None:
    prctl.set_name(f"empd:{child.name}")
    prctl.allow_tracing_by(parent_pid)
    if kind.oom_score_adj:
        score = Path("/proc/self/oom_score_adj")
        with contextlib.suppress(OSError):
            score.write_text(str(min(1000, int(score.read_text()) + kind.oom_score_adj)))
    for name in _PRIVATE_ENVIRONMENT:
        os.environ.pop(name, None)
    device = child.device
    os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid if device is not None and not device.virtual else ""
    faulthandler.enable(child.evidence_fd)
    faulthandler.register(signal.SIGUSR1, child.evidence_fd, all_threads=True, chain=False)
    evidence.tee_stderr(child.evidence_fd)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def enter(entry: str, child: Child) -> int:
    """Runs "module:function" with the child. SystemExit ends it too, with its code."""
    module_name, _, function_name = entry.partition(":")
    main: Callable[[Child], int] = getattr(importlib.import_module(module_name), function_name)
    try:
        return main(child)
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            sys.stderr.write(leaving.code + "\n")
            return 1
        return leaving.code or 0


def _say_why(evidence_fd: int) -> None:
    text = traceback.format_exc()
    if isinstance(sys.stderr, evidence.Tee):
        sys.stderr.write(text)
        return
    for fd in (2, evidence_fd):
        with contextlib.suppress(OSError):
            os.write(fd, text.encode(errors="backslashreplace"))
