"""Does to the children what the restart table says: starts, tells, dumps, kills, buries; and tells the neighbours."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import random
import signal
import time

from empd.clock import NS_PER_MS, NS_PER_S
from empd.lifecycle import ChildKind, Control, Exit, Notice, evidence_path, receive, send
from empd.memory.board import Activity, Board, Identity, SlotState
from empd.processes import stack_dump
from empd.supervisor import evidence
from empd.supervisor.children import Children, Member
from empd.supervisor.kinds import Kinds
from empd.supervisor.plan import Plan
from empd.supervisor.restart import Action, Event, Goal, State, step
from empd.supervisor.spawn import Place, spawn
from empd.supervisor.trees import Trees
from empd.supervisor.verdict import describe_status, exit_cause

_log = logging.getLogger("empd.supervisor")

# A killed process runs no more code, even while the kernel still takes it apart: longer than this nobody waits.
_BURIAL_NS_MAX = 5 * NS_PER_S
_BURIAL_RETRY_NS = 2 * NS_PER_MS
_OUTBOX_MAX = 4096
_VALUE_MAX = 2**63 - 1
_SWEEP_EVERY = 64
_DEATHS_KEPT = 256

_SLOT_STATES = {
    State.DOWN: SlotState.DEAD,
    State.STARTING: SlotState.STARTING,
    State.READY: SlotState.READY,
    State.RECYCLING: SlotState.DRAINING,
    State.DRAINING: SlotState.DRAINING,
    State.STOPPING: SlotState.STOPPING,
    State.DUMPING: SlotState.KILLING,
    State.TERMINATING: SlotState.KILLING,
    State.KILLING: SlotState.KILLING,
    State.BACKOFF: SlotState.BACKOFF,
    State.OPEN: SlotState.CIRCUIT_OPEN,
    State.HALF_OPEN: SlotState.PROBING,
}
# Starts and deaths have lines of their own.
_WAITS = frozenset({State.BACKOFF, State.OPEN})
_LEVELS = {
    State.READY: logging.INFO,
    State.RECYCLING: logging.INFO,
    State.DRAINING: logging.INFO,
    State.STOPPING: logging.INFO,
    State.DUMPING: logging.WARNING,
    State.TERMINATING: logging.WARNING,
    State.KILLING: logging.WARNING,
    State.BACKOFF: logging.WARNING,
    State.OPEN: logging.ERROR,
}


class Warden:
    """Owner of all child processes. `changed` is set whenever a child's state moved; the loop clears it."""

    def __init__(self, children: Children, kinds: Kinds, trees: Trees, board: Board, plan: Plan) -> None:
        self.children = children
        self.kinds = kinds
        self.trees = trees
        self.plan = plan
        self.changed = True
        self._board = board
        self._runtime_dir = plan.settings.runtime_dir
        self._deaths: collections.deque[tuple[int, Control]] = collections.deque(maxlen=_DEATHS_KEPT)
        self._dumpers: dict[int, int] = {}  # py-spy's pid → the generation it looks at

    def apply(self, member: Member, event: Event) -> None:
        """Something happened to the child: its life moves on, and what that takes is done."""
        before = member.life
        policy = self.plan.policy(member.spec, self.kinds[member.spec.kind].policy)
        member.life, action = step(before, event, policy, time.monotonic_ns(), random.random())
        if member.life.state is not before.state:
            self._note(member, before.state, event)
        if action is Action.SPAWN:
            self._spawn(member)
        elif action is Action.SEND_DRAIN:
            # 0 would mean without a limit.
            self.tell(member, Control(Notice.DRAIN, value=max(1, math.ceil(policy.drain_s))))
        elif action is Action.SEND_STOP:
            self.tell(member, Control(Notice.STOP))
        elif action is Action.DUMP:
            self._dump(member)
        elif action is Action.TERM:
            self._signal(member, signal.SIGTERM)
        elif action is Action.KILL:
            self.trees.kill(member.spec.name, member.pid)
        self._publish(member)

    def want(self, member: Member, goal: Goal, event: Event) -> None:
        """Changes what is wanted of the child, and lets `event` happen to it."""
        member.life = member.life._replace(goal=goal)
        self.apply(member, event)

    def condemn(self, member: Member, cause: Exit, event: Event) -> None:
        """Sets the ladder on a live child; its death will be told with `cause`. One who is on it already stays."""
        if member.is_live and member.condemned is None:
            member.condemned = cause
            self.apply(member, event)

    def run_timers(self, now_ns: int) -> int:
        """Lets every timer happen that is due; returns when the next one is, in monotonic ns (0: none)."""
        due = []
        for member in self.children:
            if member.died is not None:
                self._bury(member)
            elif 0 < member.life.until_ns <= now_ns:
                self.apply(member, Event.TIMER)
            if member.died is not None:
                due.append(now_ns + _BURIAL_RETRY_NS)
            elif member.life.until_ns:
                due.append(member.life.until_ns)
        return min(due, default=0)

    def take_death(self, member: Member) -> None:
        """The child's pidfd is readable. Its tree is killed while the unreaped pid still pins the session's id."""
        if member.died is not None or not _has_ended(member.pidfd):
            return
        member.died_ns = time.monotonic_ns()
        self.trees.kill(member.spec.name, member.pid)
        _, member.died = os.waitpid(member.pid, 0)
        os.close(member.pidfd)
        member.pidfd = -1
        self._bury(member)

    def reap_orphans(self) -> None:
        """Adopted descendants, and py-spy: nobody else takes their exit status."""
        pids = {member.pid for member in self.children if member.pidfd >= 0}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in pids:
                # A child of the table: its pidfd tells, and only then is it reaped.
                return
            os.waitpid(found.si_pid, os.WNOHANG)
            self._dumpers.pop(found.si_pid, None)

    def tell(self, member: Member, record: Control) -> None:
        """Sends a record, or keeps it until the child reads again. One that never reads is taken for hung."""
        if member.control is None:
            return
        if member.outbox or not send(member.control, record):
            member.outbox.append(record)
            if len(member.outbox) > _OUTBOX_MAX:
                self.condemn(member, Exit.HUNG, Event.HANG)

    def flush(self, member: Member) -> None:
        """Sends what `tell` had to keep, as far as the child takes it."""
        while member.outbox and member.control is not None and send(member.control, member.outbox[0]):
            member.outbox.popleft()

    def listen(self, member: Member) -> list[Control]:
        """What the child has said. After its last word the control socket is closed."""
        if member.control is None:
            return []
        try:
            records = receive(member.control)
        except ValueError as error:
            _log.error("%s sent what is not a control record: %s", member.spec.name, error)
            return []
        if records is None:
            member.control.close()
            member.control = None
            return []
        return records

    def _spawn(self, member: Member) -> None:
        spec, predecessor_ns = member.spec, member.started_ns
        member.restarts += member.generation != 0
        member.generation = self.children.next_generation()
        member.started_ns, member.ready_ns, member.condemned = time.monotonic_ns(), 0, None
        member.outbox.clear()
        if member.generation % _SWEEP_EVERY == 0:
            evidence.sweep(self._runtime_dir, {each.generation for each in self.children})
        plan = self.plan
        place = Place(member.slot, member.generation, self._runtime_dir, self._board.fd, plan.settings, plan.mapping)
        foreign = [each.control for each in self.children if each.control is not None]
        # Written before the fork: a child finds itself on the board.
        self._publish(member)
        try:
            spawned = spawn(spec, self.kinds[spec.kind], place, self.trees, plan.memory_bytes_max(spec), foreign)
        except OSError as error:
            _log.error("%s could not be forked: %s", spec.name, error)
            member.pid = 0
            self.apply(member, Event.EXITED_BAD)
            return
        member.pid, member.pidfd, member.control = spawned.pid, spawned.pidfd, spawned.control
        self.trees.admit(spec.name, member.pid)
        _log.info("%s started: pid %d, generation %d", spec.name, member.pid, member.generation)
        self._introduce(member, predecessor_ns)

    def _introduce(self, member: Member, predecessor_ns: int) -> None:
        """The newcomer gets the picture, and those who care hear of the newcomer.

        Before the picture come the deaths since its predecessor was started: that one may have died with the news
        unread, and absence alone would not tell why a neighbour is gone.
        """
        hears_of = self.kinds[member.spec.kind].hears_of
        for at_ns, gone in self._deaths:
            if predecessor_ns and at_ns >= predecessor_ns and gone.kind in hears_of and gone.slot != member.slot:
                self.tell(member, gone)
        for other in self.children:
            if other is member or not other.is_live or other.died is not None:
                continue
            if other.spec.kind in hears_of:
                self.tell(member, _up(other))
            if member.spec.kind in self.kinds[other.spec.kind].hears_of:
                self.tell(other, _up(member))
        self.tell(member, Control(Notice.PICTURE_END))

    def _bury(self, member: Member) -> None:
        """Once nothing of the tree can run any more: the neighbours are told, and the table decides what follows."""
        spec = member.spec
        if not self.trees.is_empty(spec.name, member.pid):
            if time.monotonic_ns() - member.died_ns < _BURIAL_NS_MAX:
                self.trees.kill(spec.name, member.pid)
                return
            _log.error("%s left processes that SIGKILL has not ended within 5 s", spec.name)
        status = member.died or 0
        cause = exit_cause(member.life, member.condemned, status, self.trees.out_of_memory(spec.name))
        self.trees.remove(spec.name, member.pid)
        if member.control is not None:
            member.control.close()
            member.control = None
        member.died, member.last_exit, member.last_status = None, cause, status
        # The child wrote it: whatever it is, it has to fit the record.
        activity = self._board.read(member.slot).own_activity or Activity()
        job_id = activity.job_id & _VALUE_MAX
        evidence.drop_empty(self._runtime_dir, member.generation)
        gone = Control(Notice.GONE, spec.kind, member.slot, member.generation, int(cause), member.pid, status, job_id)
        self._deaths.append((time.monotonic_ns(), gone))
        member.pid = 0
        self._end_dump(member.generation)
        for other in self.children:
            if other is not member and spec.kind in self.kinds[other.spec.kind].hears_of:
                self.tell(other, gone)
        level = logging.INFO if cause in (Exit.CLEAN, Exit.DRAINED) else logging.WARNING
        _log.log(level, "%s is gone: %s, %s", spec.name, cause.name.lower(), describe_status(status))
        if spec.kind is ChildKind.WORKER and activity.jobs_done:
            self.apply(member, Event.WORKED)
        self.apply(member, Event.EXITED_CLEAN if status == 0 else Event.EXITED_BAD)

    def _dump(self, member: Member) -> None:
        self._signal(member, signal.SIGUSR1)
        if member.spec.kind is ChildKind.SERVER:
            return  # its keeper has the server's stacks written
        command = stack_dump(member.pid)
        if not command:
            return
        path = evidence_path(self._runtime_dir, member.generation)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        with contextlib.suppress(OSError):
            pid = os.posix_spawn(command[0], command, dict(os.environ), file_actions=actions, setsid=True)
            self._dumpers[pid] = member.generation

    def _end_dump(self, generation: int) -> None:
        for pid, of_generation in self._dumpers.items():
            if of_generation == generation:
                # In the table it is not reaped yet: the pid is still its own.
                os.kill(pid, signal.SIGKILL)

    def forget(self, member: Member) -> None:
        """A child that is down leaves the table, and its slot is empty."""
        self.children.remove(member)
        identity = Identity(member.spec.kind, "", state=SlotState.EMPTY)
        self._board.writer(member.slot, Identity).write(identity)
        self.changed = True

    def _signal(self, member: Member, number: signal.Signals) -> None:
        if member.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, number)

    def _publish(self, member: Member) -> None:
        self.changed = True
        device = member.spec.device
        self._board.writer(member.slot, Identity).write(
            Identity(
                member.spec.kind,
                member.spec.name,
                member.pid,
                member.generation,
                _SLOT_STATES[member.life.state],
                member.started_ns,
                member.restarts,
                member.last_exit,
                member.last_status,
                device.uuid if device is not None else "",
                device is not None and device.virtual,
            )
        )

    def _note(self, member: Member, before: State, event: Event) -> None:
        state = member.life.state
        member.since_ns = time.monotonic_ns()
        if state is State.READY:
            member.ready_ns = member.since_ns
        level = _LEVELS.get(state, logging.DEBUG)
        wait = f" for {(member.life.until_ns - time.monotonic_ns()) / NS_PER_S:.1f} s" if state in _WAITS else ""
        _log.log(level, "%s: %s → %s on %s%s", member.spec.name, before.name, state.name, event.name, wait)


def _up(member: Member) -> Control:
    return Control(Notice.UP, member.spec.kind, member.slot, member.generation, pid=member.pid)


def _has_ended(pidfd: int) -> bool:
    return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def workers_of(children: Children) -> list[Member]:
    """The members that are workers."""
    return children.of((ChildKind.WORKER,))
