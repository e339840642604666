"""The supervisor's own life: `run` is what `empd run` calls.

    serve = startup → main_loop (wait no longer than on_tick asked, handle, tick) → shutdown

One thread, no event loop, no network socket, no database: it can fork at any moment.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from empd import prctl
from empd.clock import NS_PER_MS, NS_PER_S, seconds_to_ns
from empd.errors import ConfigError
from empd.lifecycle import EXIT_OPERATOR, ChildKind, Control, Exit, Notice
from empd.mapping import Mapping
from empd.memory.board import Board
from empd.settings import Settings
from empd.supervisor import evidence, log, notify, runtime_dir, trees
from empd.supervisor.children import Children, Member
from empd.supervisor.devices import Found, find
from empd.supervisor.heartbeat import INTERVAL_NS, HeartbeatWatch
from empd.supervisor.kinds import Kinds, kinds
from empd.supervisor.plan import SLOTS, Load, Plan, make_plan
from empd.supervisor.preload import preload
from empd.supervisor.restart import Event, Goal, State
from empd.supervisor.rollout import Rollout
from empd.supervisor.signals import Signals, waiting
from empd.supervisor.stopping import Stopping
from empd.supervisor.verdict import condemnation
from empd.supervisor.warden import Warden, workers_of

_log = logging.getLogger("empd.supervisor")


class Outside(NamedTuple):
    """What the supervisor asks when it starts and at a reload."""

    load: Load
    table: Callable[[Settings], Kinds]
    find_devices: Callable[[str | tuple[str, ...]], Found]


class Reload(NamedTuple):
    """What became of the last reload: `running`, `done`, or `refused` with what is wrong with the configuration."""

    number: int = 0
    state: str = "done"
    problems: tuple[str, ...] = ()


class Supervisor:
    """One daemon: its children, and what it has in hand (a reload, a stop)."""

    def __init__(self, plan: Plan, outside: Outside, notifier: notify.Notifier, reason: str) -> None:
        self._load, self._table, self._find_devices = outside
        self._notifier = notifier
        self._devices_reason = reason
        self._board = Board.create(SLOTS)
        rows = self._table(plan.settings)
        self.warden = Warden(Children(SLOTS), rows, trees.detect(), self._board, plan)
        self._watch = HeartbeatWatch(self._board, rows)
        self._rollout: Rollout | None = None
        self._last_reload = Reload()
        self._stopping: Stopping | None = None
        self._is_ready = False
        self._exit_status = 0
        self._look_ns = 0
        self._watchdog_ns = 0

    def serve(self) -> int:
        """Runs until a stop is complete; returns the exit status: 0 for one that was asked for."""
        self._signals = Signals()
        try:
            self.startup()
            self.main_loop()
        finally:
            self.shutdown()
        return self._exit_status

    def startup(self) -> None:
        """Every child of the plan is forked, the broker first: it begins while what the others need is loaded."""
        warden = self.warden
        modules = list(warden.plan.settings.preload)
        for kind, specs in itertools.groupby(warden.plan.specs, lambda spec: spec.kind):
            entry = warden.kinds[kind].entry.partition(":")[0]
            if kind is ChildKind.BROKER:
                _preload((entry,))
            else:
                _preload((*modules, entry))
                modules.clear()
            for spec in specs:
                warden.want(warden.children.add(spec), Goal.UP, Event.START)

    def main_loop(self) -> None:
        """Until a stop is complete."""
        while True:
            deadline_ns = self.on_tick(time.monotonic_ns())
            if deadline_ns < 0:
                return
            self._wait(deadline_ns)

    def on_tick(self, now_ns: int) -> int:
        """Whatever is due by now; returns when it wants to be called again (monotonic ns), -1 when all is over."""
        warden = self.warden
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + INTERVAL_NS
            for member in self._watch.silent(warden.children, now_ns):
                warden.condemn(member, Exit.HUNG, Event.HANG)
        if self._rollout is not None and self._rollout.tick():
            self._rollout = None
            self._came_to("done")
            self._reloaded(self.status_line())
        timers_ns = warden.run_timers(now_ns)
        self._end_if_hopeless()
        if self._stopping is not None and self._stopping.tick():
            return -1
        if self._report(now_ns):
            # What has changed may let a reload or a stop go on.
            return now_ns
        return min(filter(None, (timers_ns, self._look_ns, self._watchdog_ns)))

    def shutdown(self) -> None:
        """Nothing of this daemon is left but its state and its evidence."""
        for member in self.warden.children:
            if member.pid:
                self.warden.trees.kill(member.spec.name, member.pid)
        self._signals.close()
        self._board.close()

    def status_line(self) -> str:
        """One line for systemd and people."""
        workers = workers_of(self.warden.children)
        ready = sum(member.life.state is State.READY for member in workers)
        parts = [f"{ready} of {len(workers)} workers ready"]
        parts += [
            f"{member.spec.name} {member.life.state.name.lower()}"
            for member in self.warden.children
            if member.life.state is not State.READY and member.spec.kind is not ChildKind.WORKER
        ]
        doing = self._stopping or self._rollout
        if doing is not None:
            parts.insert(0, doing.name)
        return ", ".join(parts)

    def _wait(self, deadline_ns: int) -> None:
        poll = select.poll()
        poll.register(self._signals.fd, select.POLLIN)
        deaths: dict[int, Member] = {}
        words: dict[int, Member] = {}
        for member in self.warden.children:
            if member.pidfd >= 0:
                poll.register(member.pidfd, select.POLLIN)
                deaths[member.pidfd] = member
            if member.control is not None:
                wants = select.POLLIN | (select.POLLOUT if member.outbox else 0)
                poll.register(member.control, wants)
                words[member.control.fileno()] = member
        wait_ns = max(0, deadline_ns - time.monotonic_ns())
        # Rounded up: a poll that returns just before its deadline would only be repeated.
        ready = poll.poll(-(-wait_ns // NS_PER_MS))
        for fd, _ in ready:
            if fd in words:
                self._hear(words[fd])
        for fd, _ in ready:
            if fd in deaths:
                # Its last words may have come after the poll, and count before its death does.
                self._hear(deaths[fd])
                self.warden.take_death(deaths[fd])
        for number in self._signals.take():
            self._on_signal(number)
        self.warden.reap_orphans()

    def _end_if_hopeless(self) -> None:
        """A broker that says at the very start that it cannot serve will not learn to: the daemon ends and says so."""
        if self._is_ready or self._stopping is not None:
            return
        for broker in self.warden.children.of((ChildKind.BROKER,)):
            if os.waitstatus_to_exitcode(broker.last_status) == EXIT_OPERATOR:
                self._exit_status = EXIT_OPERATOR
                self._stopping = Stopping(self.warden)
                self._stopping.hurry()

    def _hear(self, member: Member) -> None:
        self.warden.flush(member)
        for record in self.warden.listen(member):
            self._on_record(member, record)

    def _on_record(self, member: Member, record: Control) -> None:
        if record.notice is Notice.READY:
            self.warden.apply(member, Event.READY)
        elif record.notice is Notice.RECYCLE:
            self.warden.apply(member, Event.RECYCLE)
        elif record.notice is Notice.RECYCLE_SERVER:
            server = self.warden.children.find(record.slot, record.generation)
            if server is not None and server.spec.kind is ChildKind.SERVER:
                self.warden.tell(server, Control(Notice.RECYCLE))
        elif record.notice is Notice.KILL and member.spec.kind is ChildKind.SERVER:
            # Its keeper, which is well, says of the server that it hangs.
            self.warden.condemn(member, Exit.HUNG, Event.HANG)
        elif member.spec.kind is not ChildKind.BROKER:
            return
        elif record.notice is Notice.KILL:
            target = self.warden.children.find(record.slot, record.generation)
            if target is not None and target is not member:
                self.warden.condemn(target, condemnation(record.cause), Event.KILL)
        elif record.notice is Notice.RELOAD_REQUEST:
            self._reload()
        elif record.notice is Notice.STOP_REQUEST:
            self._stop()

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            self._reload()
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping is not None:
                self._stopping.hurry()
            self._stop()

    def _stop(self) -> None:
        if self._stopping is None:
            self._rollout = None
            self._stopping = Stopping(self.warden)
            self._notifier.stopping(self.status_line())

    def _reload(self) -> None:
        """Puts the new configuration in force, or says what is wrong with it and keeps the old one."""
        if self._stopping is not None:
            return
        self._last_reload = Reload(self._last_reload.number + 1, "running")
        if self._is_ready:
            self._notifier.reloading("reading the configuration")
        try:
            plan = self._read_plan()
        except ConfigError as error:
            self._refuse(error.problems)
            return
        except Exception as error:  # whatever is wrong with an operator's files, it must not end what runs
            self._refuse([f"{type(error).__name__}: {error}"])
            return
        self.warden.kinds = self._table(plan.settings)
        self._watch = HeartbeatWatch(self._board, self.warden.kinds)
        self._rollout = Rollout(self.warden, plan)
        self._came_to("running")

    def _came_to(self, state: str, problems: Sequence[str] = ()) -> None:
        self._last_reload = Reload(self._last_reload.number, state, tuple(problems))
        self.warden.changed = True  # the status file tells it to who asked

    def _refuse(self, problems: list[str]) -> None:
        for problem in problems:
            _log.error("reload: %s", problem)
        self._came_to("refused", problems)
        self._reloaded(f"reload refused, the old configuration is in force: {problems[0]}")

    def _reloaded(self, line: str) -> None:
        # Before the first READY this one would come too early; it will be said when it is true.
        if self._is_ready:
            self._notifier.ready(line)

    def _read_plan(self) -> Plan:
        old = self.warden.plan
        settings, mapping = self._load()
        problems = [
            f"{name}: a reload cannot move it from {getattr(old.settings, name)}; restart for {getattr(settings, name)}"
            for name in ("state_dir", "runtime_dir")
            if getattr(settings, name) != getattr(old.settings, name)
        ]
        if problems:
            raise ConfigError(problems)
        devices = old.devices
        # Asking takes time that nobody is watched in: only where the answer may be another one.
        if settings.gpus != old.settings.gpus or (settings.gpus == "auto" and not devices):
            found = self._find_devices(settings.gpus)
            devices, self._devices_reason = tuple(found.devices), found.reason
        return for_later(make_plan(settings, mapping, devices))

    def _report(self, now_ns: int) -> bool:
        """Tells systemd and the status file what has changed since the last time; False if nothing has."""
        if not self._is_ready and self._stopping is None and self._serves():
            self._is_ready = True
            self.warden.plan = for_later(self.warden.plan)
            _log.info("ready: %s", self.status_line())
            self._notifier.ready(self.status_line())
        if self._notifier.watchdog_s is not None and now_ns >= self._watchdog_ns:
            self._watchdog_ns = now_ns + seconds_to_ns(self._notifier.watchdog_s)
            self._notifier.watchdog()
        changed, self.warden.changed = self.warden.changed, False
        if changed:
            self._notifier.status(self.status_line())
            self._write_status()
        return changed

    def _serves(self) -> bool:
        children = self.warden.children
        front = children.of((ChildKind.BROKER, ChildKind.WEB))
        return all(member.life.state is State.READY for member in front) and all(
            member.generation for member in workers_of(children)
        )

    def _write_status(self) -> None:
        """`runtime_dir/supervisor.json`: what the board has no room for. Replaced whole; losing it harms nothing."""
        plan = self.warden.plan
        status = {
            "pid": os.getpid(),
            "mode": self.warden.trees.mode,
            "status": self.status_line(),
            "devices": [msgspec.to_builtins(device) for device in plan.devices],
            "devices_reason": self._devices_reason,
            "without_gpu": [
                name for name, worker in plan.mapping.workers.items() if worker.is_gpu_bound and not plan.devices
            ],
            "reload": self._last_reload._asdict(),
            "children": [self._child_status(member) for member in self.warden.children],
        }
        path = plan.settings.runtime_dir / "supervisor.json"
        try:
            path.with_suffix(".part").write_text(json.dumps(status))
            path.with_suffix(".part").rename(path)
        except OSError as error:
            _log.warning("%s could not be written: %s", path, error)

    def _child_status(self, member: Member) -> dict[str, object]:
        spec = member.spec
        status: dict[str, object] = {
            "name": spec.name,
            "kind": spec.kind.name.lower(),
            "slot": member.slot,
            "state": member.life.state.name.lower(),
            "since_unix_s": round(time.time() - (time.monotonic_ns() - member.since_ns) / NS_PER_S, 3),
            "pid": member.pid,
            "generation": member.generation,
            "restarts": member.restarts,
            "last_exit": None if member.last_exit is None else member.last_exit.name.lower(),
            "last_status": member.last_status,
            "next_start_unix_s": _next_start_unix_s(member),
        }
        if spec.kind is ChildKind.SERVER:
            activity = self._board.read(member.slot).own_activity if member.pid else None
            server_pid, port = activity.spares[:2] if activity is not None else (0, 0)
            status |= {"service": spec.worker_type, "server_pid": server_pid, "port": port}
        return status


def _next_start_unix_s(member: Member) -> float | None:
    """When a child that waits for its next start gets it; None for all others."""
    if member.life.state not in (State.BACKOFF, State.OPEN):
        return None
    return round(time.time() + (member.life.until_ns - time.monotonic_ns()) / NS_PER_S, 3)


def _preload(modules: Iterable[str]) -> None:
    for line in preload(modules):
        _log.warning("not preloaded: %s", line)


def for_later(plan: Plan) -> Plan:
    """The plan for all starts but the first: a loss that was accepted was accepted once."""
    return plan._replace(settings=msgspec.structs.replace(plan.settings, accept_loss=False))


def run(
    settings: Settings,
    mapping: Mapping,
    load: Load,
    *,
    table: Callable[[Settings], Kinds] = kinds,
    find_devices: Callable[[str | tuple[str, ...]], Found] = find,
) -> int:
    """Runs the daemon until it is told to stop; returns 0 only then.

    `load` reads the configuration again at a reload. `table` gives the child kinds. Raises StateLocked when another
    daemon has the directories, ConfigError when they cannot be used.
    """
    with waiting():
        return _run(settings, mapping, Outside(load, table, find_devices))


def _run(settings: Settings, mapping: Mapping, outside: Outside) -> int:
    log.to_stderr(settings.log_level)
    state_lock = runtime_dir.Lock(settings.state_dir, "state_dir")
    runtime_lock = runtime_dir.Lock(settings.runtime_dir, "runtime_dir")
    try:
        runtime_dir.prepare(settings.runtime_dir)
        evidence.sweep(settings.runtime_dir)
        prctl.adopt_orphans()
        prctl.set_name("empd")
        found = outside.find_devices(settings.gpus)
        if found.reason:
            _log.info("GPUs: %s", found.reason)
        plan = make_plan(settings, mapping, found.devices)
        notifier = notify.from_environment(os.environ)
        status = Supervisor(plan, outside, notifier, found.reason).serve()
        runtime_dir.leave(settings.runtime_dir)
        return status
    finally:
        runtime_lock.release()
        state_lock.release()
