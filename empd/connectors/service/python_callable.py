"""A service made of an operator's own `module:name`.

An async callable runs in the worker's event loop. A plain one runs in a thread of its own when the service has one
slot, else in a pool of processes; `isolation` in the mapping chooses otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from empd.connectors.base import Connector, ConnectorConfig, ReportsProgress, Service, Site
from empd.connectors.context import Context, JobView, SyncContext, ThreadBridge
from empd.connectors.failures import ServiceUnavailable
from empd.connectors.service import callables
from empd.connectors.service.pool import ProcessPool
from empd.connectors.service.threads import WorkThreads


class PythonConfig(ConnectorConfig):
    """`callable` is `module:name`; `options` are the keyword arguments of a class's `setup`."""

    callable: str
    options: dict[str, Any] = {}


class PythonConnector(Service, ReportsProgress):
    """Calls the callable with the payload (and the context, where it takes two arguments)."""

    connector_id = "python"
    service_type = "python"
    Config: ClassVar[type[ConnectorConfig]] = PythonConfig
    config: PythonConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        Connector.__init__(self, config, site)
        self._loaded: callables.Loaded | None = None
        self._threads: WorkThreads | None = None
        self._pool: ProcessPool | None = None
        self._run: Callable[[JobView, Context], Awaitable[Any]] = self._not_open

    async def open(self) -> None:
        """Imports and sets up, once for this worker (or for each process of the pool)."""
        if self._pool is not None or self._threads is not None:
            return
        isolation, slots = self.site.isolation, self.site.max_concurrent_jobs
        if isolation == "process" or (isolation != "thread" and slots > 1):
            config, site = self.config, self.site
            pool = ProcessPool(config.callable, config.options, slots, site.python_path, list(site.secrets))
            is_async = await pool.probe()
            if isolation == "process" or not is_async:
                self._pool, self._run = pool, pool.run
                return
            await pool.close()
        await self._open_here(slots)

    async def _open_here(self, slots: int) -> None:
        threads = WorkThreads(f"{self.site.service}", slots if self.site.isolation == "thread" else 1)
        try:
            # In a thread, so that the worker stays alive to its neighbours while heavy modules are imported.
            loaded = await threads.submit(lambda: callables.load(self.config.callable, self.site.python_path))
            await callables.prepare(loaded, self.config.options, threads.submit)
        except BaseException:  # whatever it is, it is raised again; the threads must not stay
            threads.close()
            raise
        self._loaded, self._threads = loaded, threads
        self._run = self._in_loop if loaded.is_async else self._in_thread

    async def close(self) -> None:
        """Tears down."""
        self._run = self._not_open
        if self._pool is not None:
            await self._pool.close()
            self._pool = None
        if self._loaded is not None and self._threads is not None:
            try:
                await callables.dismantle(self._loaded, self._threads.submit)
            finally:
                self._threads.close()
                self._loaded = self._threads = None

    async def process(self, job: JobView, context: Context) -> Any:
        """The callable's value."""
        return await self._run(job, context)

    async def _in_loop(self, job: JobView, context: Context) -> Any:
        loaded = self._loaded
        assert loaded is not None
        return await callables.run_async(loaded, await context.load(), context)

    async def _in_thread(self, job: JobView, context: Context) -> Any:
        loaded, threads = self._loaded, self._threads
        assert loaded is not None
        assert threads is not None
        outside = SyncContext(context, ThreadBridge(asyncio.get_running_loop()))
        return await threads.finish(lambda: callables.run(loaded, context.payload, outside))

    async def _not_open(self, job: JobView, context: Context) -> Any:
        raise ServiceUnavailable(f"service {self.site.service!r} is not open")
