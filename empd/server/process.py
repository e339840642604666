"""The keeper of one third-party server: starts it, asks for its health, takes its output, ends it.

Entered by the supervisor as `empd.server.process:main`, one for each instance. READY when the server is well for the
first time; it ends when its server does, with the same wait status. Whether and when there is another one is the
restart table's business, and so are the limits of start and stop.

    health fails for `hang_s`    KILL on itself: the supervisor sets the ladder on it, as on any child that hangs
    too heavy, or a worker asks  RECYCLE: runs on until no worker holds a lease on it, then ends
    DRAIN                        the same; the supervisor says STOP when it has waited long enough
    STOP, SIGTERM                the server's own ladder: `stop_signal`, `stop_s`, KILL
    SIGUSR1                      the ladder's dump: the stacks of a Python server go into its log

A lease is this generation's number among the `spares` of a worker's activity on the board. A worker takes one while
the board says READY and gives it back when its last job there has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import signal
import subprocess
import time

import aiohttp

from empd import lifecycle
from empd.internal import EXIT_NOT_STARTED, ServerInstance, instance_for, log_path
from empd.lifecycle import Child, ChildKind, Control, Exit, Notice
from empd.memory.board import UNKNOWN, Activity, Board, SlotState
from empd.memory.layout import SPARES
from empd.processes import session_members
from empd.server.launch import dump_stacks, is_taken, launch
from empd.server.output import Output

_log = logging.getLogger("empd.server")

BASELINE_FACTOR = 1.25
DUMP_S_MAX = 3.0
POLL_S = 0.1
PORT_S_MAX = 5.0
# While it starts or is ill it is asked this often, or at its own interval where that is shorter.
_EAGER_S = 0.5
_FAILURES_MIN = 3
_UP = frozenset({SlotState.STARTING, SlotState.PROBING, SlotState.READY})
_GONE = frozenset({SlotState.EMPTY, SlotState.DEAD, SlotState.BACKOFF, SlotState.CIRCUIT_OPEN})


def main(child: Child) -> int:
    """Keeps the server until it ends. 0: it was asked to; else as the server did (a signal is died of likewise)."""
    status = asyncio.run(Keeper(child).serve())
    if status < 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


class Keeper:
    """One server and what is known of it."""

    def __init__(self, child: Child) -> None:
        entry = child.mapping.services[child.worker_type]
        self._child = child
        self._server = entry.server
        self._instance: ServerInstance = instance_for(child.worker_type, entry.server, child.device, child.lap)
        self._output = Output(log_path(child.settings.state_dir, child.name), entry.server.log_bytes_max)
        self._board = Board.attach(child.board_fd)
        self._writer = self._board.writer(child.slot, Activity)
        self._heartbeat_s = child.settings.heartbeat_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._leaving: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._dumper: subprocess.Popen[bytes] | None = None
        self._rss_bytes = 0
        self._memory_limit_bytes = self._vram_limit_bytes = 0

    async def serve(self) -> int:
        """The keeper's whole life; returns the exit status, negative for a signal."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        try:
            return await self._serve() if await self._start() else EXIT_NOT_STARTED
        finally:
            self._output.finish()

    async def _serve(self) -> int:
        process = self._process
        assert process is not None
        pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(pidfd, self._on_death, process)
        self._loop.add_reader(self._child.control.fileno(), self._on_control)
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        self._loop.add_signal_handler(signal.SIGUSR1, self._dump, process.pid)
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the group; the supervisor decides
        self._beat()
        watching = asyncio.create_task(self._watch())
        try:
            return await self._ended
        finally:
            watching.cancel()
            self._kill()

    # --- start and end -----------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        instance = self._instance
        problem = "" if await self._port_is_free() else f"port {instance.port} is taken by another process"
        try:
            if not problem:
                self._process = launch(instance, self._output.write_fd)
        except OSError as error:
            problem = f"cannot be started: {error.strerror}: {error.filename}"
        self._output.begin()
        if self._process is None:
            self._say(problem)
            return False
        self._say(f"started: pid {self._process.pid}, port {instance.port}", logging.INFO)
        return True

    async def _port_is_free(self) -> bool:
        """Waits a while for it: whoever got it while no server was there may let go soon, and the restart table's
        waits grow. False too when the supervisor wants no server any more."""
        end_s = self._loop.time() + PORT_S_MAX
        while is_taken(self._instance.port):
            records = lifecycle.receive(self._child.control)
            is_unwanted = records is None or any(each.notice in (Notice.STOP, Notice.DRAIN) for each in records)
            if is_unwanted or self._loop.time() >= end_s:
                return False
            self._write()
            await asyncio.sleep(POLL_S)
        return True

    def _on_death(self, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if self._ended.done():
            return
        asked = self._is_stopping
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._say(f"ended: {how}", logging.INFO if asked else logging.WARNING)
        self._ended.set_result(0 if asked else status)

    def _stop(self) -> None:
        """The ladder; a second asking changes nothing."""
        if not self._is_stopping:
            self._is_stopping = True
            if self._leaving is not None:
                self._leaving.cancel()
            self._leaving = asyncio.create_task(self._end())

    def _dump(self, pid: int) -> None:
        self._dumper = dump_stacks(pid, self._output.write_fd)

    async def _end(self) -> None:
        self._is_stopping = True
        process, patience_s = self._process, DUMP_S_MAX
        assert process is not None
        while self._dumper is not None and self._dumper.poll() is None and patience_s > 0:
            await asyncio.sleep(POLL_S)
            patience_s -= POLL_S
        self._say(f"stopping: {self._server.stop_signal}", logging.INFO)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.Signals[self._server.stop_signal])
        await asyncio.wait((self._ended,), timeout=self._server.stop_s)
        if not self._ended.done():
            self._say(f"still runs {self._server.stop_s:g} s after {self._server.stop_signal}: KILL")
            self._kill()

    def _kill(self) -> None:
        """Every process of this session but this one."""
        for pid in session_members(os.getpid()):
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    # --- what the supervisor says ------------------------------------------------------------------------------------

    def _on_control(self) -> None:
        records = lifecycle.receive(self._child.control)
        if records is None:
            self._loop.remove_reader(self._child.control.fileno())
            self._kill()
            return
        for record in records:
            if record.notice is Notice.STOP:
                self._stop()
            elif record.notice is Notice.DRAIN:
                self._leave()
            elif record.notice is Notice.RECYCLE:
                self._recycle("a worker asked for it")

    def _tell(self, notice: Notice, cause: Exit = Exit.CLEAN) -> None:
        child = self._child
        lifecycle.send(child.control, Control(notice, child.kind, child.slot, child.generation, int(cause)))

    def _recycle(self, reason: str) -> None:
        if self._leaving is None and self._is_ready:
            self._say(f"is replaced when no job runs on it: {reason}", logging.INFO)
            self._tell(Notice.RECYCLE)
            self._leave()

    def _leave(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._end_when_free())

    async def _end_when_free(self) -> None:
        # While the board calls it READY a worker may still take a lease.
        while self._is_offered() or self._is_leased():
            await asyncio.sleep(POLL_S)
        await self._end()

    def _is_offered(self) -> bool:
        identity = self._board.read(self._child.slot).identity
        return identity is not None and identity.state in _UP

    def _is_leased(self) -> bool:
        for view in self._board.read_taken():
            identity, activity = view.identity, view.own_activity
            if identity is None or activity is None or identity.kind is not ChildKind.WORKER:
                continue
            if self._child.generation in activity.spares and identity.state not in _GONE:
                return True
        return False

    # --- health and weight -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        server, failures, well_s = self._server, 0, time.monotonic()
        url = self._instance.fill(server.health_url)
        timeout = aiohttp.ClientTimeout(total=server.health_timeout_s)
        # A connection of its own for each question: one that was kept may have died with nobody the wiser.
        async with aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(force_close=True), trust_env=False
        ) as session:
            while True:
                problem = await _ask(session, url)
                if not problem:
                    failures, well_s = 0, time.monotonic()
                    self._on_well()
                elif self._is_ready:
                    failures += 1
                    # Counted too: a machine that slept has not given the server its time.
                    if failures >= _FAILURES_MIN and time.monotonic() - well_s >= server.hang_s:
                        self._condemn(f"not well for {server.hang_s:g} s: {problem}")
                        return
                is_well = self._is_ready and not failures
                await asyncio.sleep(server.health_interval_s if is_well else min(_EAGER_S, server.health_interval_s))

    def _condemn(self, reason: str) -> None:
        if not self._is_stopping:
            self._say(f"hangs: {reason}")
            self._tell(Notice.KILL, Exit.HUNG)

    def _on_well(self) -> None:
        self._rss_bytes = sum(size for pid, size in session_members(os.getpid()).items() if pid != os.getpid())
        if not self._is_ready:
            self._is_ready = True
            # No limit below what the idle server needs could ever hold.
            self._memory_limit_bytes = _limit(self._server.memory_max_bytes, self._rss_bytes)
            self._say("ready", logging.INFO)
            self._write()
            self._tell(Notice.READY)
            return
        if 0 < self._memory_limit_bytes < self._rss_bytes:
            self._recycle(f"{self._rss_bytes} bytes of memory, limit {self._memory_limit_bytes}")
        vram_bytes = self._vram_bytes()
        if vram_bytes == UNKNOWN:
            return
        if not self._vram_limit_bytes:
            self._vram_limit_bytes = _limit(self._server.vram_max_bytes, vram_bytes)
        if 0 < self._vram_limit_bytes < vram_bytes:
            self._recycle(f"{vram_bytes} bytes of GPU memory, limit {self._vram_limit_bytes}")

    def _vram_bytes(self) -> int:
        """What telemetry last saw of this generation's processes on its GPU."""
        view = self._board.read(self._child.slot)
        if view.gauges is None or view.identity is None or view.gauges.at_mono_ns < view.identity.started_mono_ns:
            return UNKNOWN
        return view.gauges.processes_memory_bytes

    def _beat(self) -> None:
        self._write()
        self._loop.call_later(self._heartbeat_s, self._beat)

    def _write(self) -> None:
        pid = self._process.pid if self._process is not None else 0
        spares = (pid, self._instance.port, *(0,) * (SPARES - 2))
        self._writer.write(Activity(time.monotonic_ns(), rss_bytes=self._rss_bytes, spares=spares))

    def _say(self, text: str, level: int = logging.WARNING) -> None:
        """To the daemon's log, and among the server's own lines."""
        _log.log(level, "%s: %s", self._child.name, text)
        self._output.note(text)


def _limit(limit_bytes: int, baseline_bytes: int) -> int:
    return max(limit_bytes, int(baseline_bytes * BASELINE_FACTOR)) if limit_bytes else 0


async def _ask(session: aiohttp.ClientSession, url: str) -> str:
    """What is wrong with the server; empty when it is well."""
    try:
        async with session.get(url, allow_redirects=False) as answer:
            return "" if answer.status < 400 else f"{url} answered {answer.status}"
    except TimeoutError:
        return f"{url} gave no answer in time"
    except (aiohttp.ClientError, OSError) as error:
        return f"{url}: {error or type(error).__name__}"
