"""An internal service inside a worker: offered while its server and its connector are well, and judged by both."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from empd.connectors.base import Connector, ConnectorState, Service
from empd.connectors.context import Context, JobView
from empd.connectors.endpoints import Endpoints
from empd.connectors.failures import ConnectorError, ServiceUnavailable, describe
from empd.connectors.redaction import secrets_in
from empd.connectors.verdict import judge
from empd.errors import FailureClass
from empd.internal import ServerInstance
from empd.job import Cause
from empd.lifecycle import ChildKind, Control, Notice
from empd.worker.hosted import Hosted, Process, end
from empd.worker.servers import Lease, Seat, ServerView

LOOK_S = 0.2
DEATH_S_MAX = 1.0
"""A job that fails waits this long for the news that its server has died: connections break before a process ends."""

_MAY_BE_DEATH = frozenset({FailureClass.UNAVAILABLE, FailureClass.BAD_RESPONSE, FailureClass.INTERNAL})


class ServerDied(ConnectorError):
    """The service's own server died while the job ran on it.

    Charged as a crash: a job that takes its server with it again and again ends dead-lettered.
    """

    failure = FailureClass.UNAVAILABLE
    cause = Cause.WORKER_CRASHED


async def _while_it_lives(lease: Lease, work: Awaitable[Any]) -> Any:
    """What `work` gives. Raises ServiceUnavailable where it goes on long after its server's death."""
    limit = asyncio.timeout(None)
    try:
        async with limit:
            lease.limits.add(limit)
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise ServiceUnavailable("it went on waiting for its server") from error
        raise
    finally:
        lease.limits.discard(limit)


class Internal(Hosted):
    """A service whose server the daemon runs. The connector is opened anew for each generation of the server."""

    def attach(self, instance: ServerInstance, seat: Seat, tell: Callable[[Control], bool]) -> None:
        """Which server, and how the supervisor is told; before `build`."""
        self._server = instance.server
        self.redact.learn(secrets_in(instance.server.environment))  # what it writes becomes evidence
        self._view = ServerView(instance, seat, self._on_death)
        self._tell = tell
        self._wake = asyncio.Event()
        self._opened: Lease | None = None
        self._inner: asyncio.Task[None] | None = None
        self.site = self.site._replace(recycle_server=self.recycle)

    @property
    def reason(self) -> str:
        """Why no job can be taken: the server comes first."""
        return self._view.reason or super().reason

    def _around(self, connector: Service, process: Process) -> Process:
        """Innermost, so that records, plugins and traces say of a server's death what it was."""
        return super()._around(connector, functools.partial(self._on_server, process))

    def _took_over(self) -> bool:
        """Its connector is opened when its server is there, which may be much later."""
        return self._connector is not None

    def _endpoints(self, kind: type[Connector], api_config: Mapping[str, Any]) -> Endpoints:
        """The daemon knows where it runs the server."""
        return Endpoints(self._view.instance.endpoint)

    def facts(self) -> dict[str, Any]:
        """With the server's name; while there is no server, that is the state."""
        body = {**super().facts(), "server": self._view.instance.name}
        if self._view.reason and self._connector is not None:
            body |= {"state": ConnectorState.WAITING_FOR_SERVICE.value, "reason": self.redact(self._view.reason)}
        return body

    async def open(self, on_change: Callable[[], None]) -> None:
        """Begins to follow the server, and returns at once: a server may take minutes to start."""
        if self._connector is None:
            return
        self.on_change = on_change
        await self._plugins.initialize(self._connector)
        self._view.look(0)
        self._say(self._view.reason)
        self._keeper = asyncio.create_task(self._follow(self._connector))

    async def close(self) -> None:
        """Closes the connector, and lets go of the server."""
        await self._stop_inner()
        await super().close()
        self._view.close()
        self._opened = None

    def recycle(self, reason: str) -> None:
        """Has the server replaced when the jobs that run on it have ended; nothing new is taken until then."""
        lease = self._view.lease
        if lease is None or lease.asked:
            return
        lease.asked = self._tell(Control(Notice.RECYCLE_SERVER, ChildKind.SERVER, lease.slot, lease.generation))
        if lease.asked:
            self._log("server_recycled", service=self.name, server=self._view.instance.name, reason=self.redact(reason))
            self._view.reason = f"its server {self._view.instance.name} is being replaced: {self.redact(reason)}"
            self.on_change()
            self._wake.set()

    def _on_death(self) -> None:
        self._told()
        self.on_change()
        self._wake.set()

    async def _follow(self, connector: Service) -> None:
        while True:
            try:
                await self._look_at(connector)
            except Exception as error:  # whatever it was: nobody else would ever offer this service again
                self._log("service_watch_failed", "error", service=self.name, reason=describe(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _look_at(self, connector: Service) -> None:
        before = (self.reason, self._view.reason)
        self._view.look(connector.active_jobs)
        lease = self._view.lease
        if self._opened is not lease and not connector.active_jobs:
            await self._open_for(lease, connector)
        if lease is not None and not self._view.reason:
            self._weigh(lease)
        if self._view.reason != before[1]:
            self._say(self._view.reason)
        if self.reason != before[0]:
            self._told()
            self.on_change()

    async def _open_for(self, lease: Lease | None, connector: Service) -> None:
        """What the connector knew of the server before is gone with it."""
        self._reason = "starting"  # the server's own word may be good already; while this waits nothing is taken
        await self._stop_inner()
        await connector.stop()
        self.hold.clear()
        self._opened, self._reason, self.models = lease, "starting", []
        if lease is not None:
            if connector.may_start:
                await self._look(connector, connector.start())
            self._inner = asyncio.create_task(self._keep(connector, self.on_change))

    async def _stop_inner(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            await end(inner)

    def _weigh(self, lease: Lease) -> None:
        """A server whose port answers and whose connector finds it ill hangs too, if it ever was well."""
        now_s = time.monotonic()
        if not self._reason:
            lease.well_s = now_s
        elif lease.well_s and now_s - lease.well_s >= self._server.hang_s:
            self.recycle(f"not well for {self._server.hang_s:g} s: {self._reason}")

    async def _on_server(self, process: Process, job: JobView, context: Context) -> Any:
        lease = self._view.lease
        if lease is None or self._view.reason:
            raise ServiceUnavailable(self._view.reason)
        try:
            return await _while_it_lives(lease, process(job, context))
        except Exception as error:  # foreign code: whatever it raises, the server's death may be behind it
            verdict = judge(error)
            if verdict.retry and await self._has_died(lease, verdict.failure):
                raise await self._death(lease, error) from error
            raise
        finally:
            lease.jobs += 1
            if 0 < self._server.recycle_after_jobs <= lease.jobs:
                self.recycle(f"{lease.jobs} jobs")

    async def _has_died(self, lease: Lease, failure: FailureClass) -> bool:
        if failure in _MAY_BE_DEATH:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEATH_S_MAX):
                    await lease.dead.wait()
        return lease.dead.is_set()

    async def _death(self, lease: Lease, error: Exception) -> ConnectorError:
        name = self._view.instance.name
        if lease.told_to_stop:
            return ServiceUnavailable(f"its server {name} was stopped: {describe(error)}", cause=Cause.RELOAD)
        message = f"its server {name} died while the job ran on it: {describe(error)}"
        return ServerDied(message, evidence=await self._view.last_words(lease))

    def _say(self, reason: str) -> None:
        """What the server's state means for the service; the connector's own is said by `_look`."""
        if reason:
            state = ConnectorState.WAITING_FOR_SERVICE.value
            self._log("service_health", "warning", service=self.name, state=state, reason=reason)
