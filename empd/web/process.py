"""The web process: API, metrics, page, history. A client of the broker like any other; its death touches nothing.

Life: startup (bind everything, READY) → main_loop (obey control records, show a heartbeat, keep history) → shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import time
from pathlib import Path

import uvloop
from aiohttp import web

from empd import lifecycle
from empd.connectors.tracing import tracer_for
from empd.errors import ConfigError, EmpdError
from empd.lifecycle import Child, Control, Notice
from empd.mapping import Mapping
from empd.memory.arena import Arena
from empd.memory.board import Activity, Board
from empd.web import app
from empd.web.archive import Archive
from empd.web.asset_leftovers import AssetLeftovers
from empd.web.assets import AssetRetention
from empd.web.context import Context
from empd.web.events import Feed, Hub
from empd.web.gateway import Gateway
from empd.web.history_socket import HistorySocket
from empd.web.joblog import JobLogs
from empd.web.leftovers import Leftovers
from empd.web.metrics import Metrics
from empd.web.projector import Projector
from empd.web.retention import Retention
from empd.web.telemetry_socket import TelemetrySocket

SWITCH_S = 0.0005
"""How long the thread that writes history may hold the interpreter while the loop wants it. A request waits for it at
each of its steps: with Python's 5 ms an answer took 30 ms under full load, and both cost the same."""

SHUTDOWN_S = 5.0
ADDRESS_FILE = "http"


def main(child: Child) -> int:
    """Entered by the supervisor. Returns 0 after a stop or drain that was asked for."""
    # Not nicer than the others: under full load no more jobs were done for it, and an answer took five times as long.
    sys.setswitchinterval(SWITCH_S)
    try:
        return uvloop.run(WebProcess(child).serve())
    except EmpdError as error:
        sys.stderr.write(f"web: {error}\n")
        return 1


class WebProcess:
    """All parts, in the order of their life."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._settings = child.settings
        self._stop = asyncio.Event()
        self._grace_s = SHUTDOWN_S
        self._asked = False

    async def serve(self) -> int:
        """Runs until asked to stop, or until the supervisor is gone."""
        try:
            await self.startup()
            await self.main_loop()
        finally:
            await self.shutdown()
        return 0 if self._asked else 1

    async def startup(self) -> None:
        """Makes every part and binds every socket; READY is sent when the first request would be answered."""
        settings = self._settings
        self._board = Board.attach(self._child.board_fd)
        self._activity = self._board.writer(self._child.slot, Activity)
        self._archive = Archive(settings.history_path)
        await self._archive.open()
        arena = Arena(settings.spool_dir, settings.volatile_dir, sync=settings.survives_power_loss)
        gateway = Gateway(settings.clients_endpoint, settings.curve_dir)
        hub, metrics = Hub(), Metrics(self._board)
        self._context = Context(
            settings=settings,
            mapping=self._child.mapping,
            gateway=gateway,
            archive=self._archive,
            arena=arena,
            board=self._board,
            hub=hub,
            feed=Feed(gateway, hub),
            logs=JobLogs(settings.job_log_bytes_max),
            metrics=metrics,
        )
        self._history_socket = HistorySocket(settings.history_endpoint, self._archive, arena)
        self._telemetry_socket = TelemetrySocket(
            settings.telemetry_endpoint, hub, self._context.logs, metrics, self._context.facts
        )
        self._tracer, problem = tracer_for("web", os.environ)
        if problem:
            sys.stderr.write(f"web: {problem}\n")
        self._projector = Projector(gateway, self._archive, metrics.jobs, self._tracer)
        self._retention = Retention(self._archive, arena, settings)
        self._leftovers = Leftovers(gateway, self._archive, arena)
        self._asset_retention = AssetRetention(settings.assets_dir, settings.assets_keep_s)
        self._asset_leftovers = AssetLeftovers(
            settings.assets_dir, self._child.mapping, gateway, self._archive, settings.history_keep_s
        )
        self._runner = web.AppRunner(app.build(self._context), access_log=None, shutdown_timeout=self._grace_s)
        await self._listen()
        self._projector.start()
        self._retention.start()
        self._leftovers.start()
        self._asset_retention.start()
        self._asset_leftovers.start()
        asyncio.get_running_loop().add_reader(self._child.control.fileno(), self._obey)
        self._beat()
        lifecycle.send(self._child.control, Control(Notice.READY))

    async def _listen(self) -> None:
        host, port = self._settings.http_address
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=1024, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            said = f"http: cannot listen on {self._settings.http}: {why}; set another address (--http HOST:PORT)"
            raise ConfigError([said]) from error
        name, chosen = self._runner.addresses[0][:2]
        write_address(
            self._settings.runtime_dir / ADDRESS_FILE, f"[{name}]:{chosen}" if ":" in name else f"{name}:{chosen}"
        )

    async def main_loop(self) -> None:
        """Shows a heartbeat until the end."""
        while not self._stop.is_set():
            self._beat()
            try:
                async with asyncio.timeout(self._settings.heartbeat_s):
                    await self._stop.wait()
            except TimeoutError:
                continue

    async def shutdown(self) -> None:
        """Ends streams, finishes requests within the grace, closes everything."""
        loop = asyncio.get_running_loop()
        if hasattr(self, "_context"):
            self._context.draining = True
            self._context.hub.close()
        if hasattr(self, "_runner"):
            loop.remove_reader(self._child.control.fileno())
            await self._runner.cleanup()
            await self._retention.stop()
            await self._leftovers.stop()
            await self._asset_retention.stop()
            await self._asset_leftovers.stop()
            await self._projector.stop()
            if self._tracer.on:
                await asyncio.wait((asyncio.ensure_future(asyncio.to_thread(self._tracer.close)),), timeout=1.0)
            await self._context.feed.stop()
            self._telemetry_socket.close()
            self._history_socket.close()
            self._context.gateway.close()
        if hasattr(self, "_archive"):
            await self._archive.close()

    def _beat(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._activity.write(Activity(heartbeat_mono_ns=time.monotonic_ns(), rss_bytes=usage.ru_maxrss * 1024))

    def _obey(self) -> None:
        records = lifecycle.receive(self._child.control)
        if records is None:
            # The supervisor is gone: everything ends with it.
            self._stop.set()
            return
        for record in records:
            if record.notice in (Notice.STOP, Notice.DRAIN):
                self._asked = True
                self._context.draining = True
                if record.notice is Notice.DRAIN and record.value > 0:
                    self._grace_s = min(SHUTDOWN_S, float(record.value))
                self._stop.set()
            elif record.notice is Notice.RELOAD:
                self._reload()

    def _reload(self) -> None:
        """What is shown of the mapping follows the file; all else needs a new process, which `reload` rolls in."""
        with contextlib.suppress(ConfigError):  # the supervisor has refused it too: the former one goes on
            self._context.mapping = Mapping.load(self._settings.mapping)


def write_address(path: Path, address: str) -> None:
    """Writes the address in use, so that a reader sees all of it or the former one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{address}\n")
    os.replace(part, path)
