"""A job's way through one service: plugins, records, spans around the connector's `process`.

Only services that want one of these have it; a connector that is called tens of thousands of times a second
(`logs_jobs = False`) is called by its lane directly. Of the others `job_completed` and `job_failed` are written at
most `RECORDS_PER_S` times a second each, the next one saying how many were left out; `job_received`, `job_started` and
`job_progress` at level debug, where nothing is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from empd.connectors.base import Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import InvalidInput
from empd.connectors.logger import ConnectorLogger
from empd.connectors.plugins import Plugins
from empd.connectors.protocol.cache import Cache
from empd.connectors.protocol.json_pointer import MISSING
from empd.connectors.tracing import Tracer
from empd.payload import BlobRef

RECORDS_PER_S = 20.0

Process = Callable[[JobView, Context], Awaitable[Any]]


class Allowance:
    """So many records a second, in bursts of as many."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at_s = 0.0
        self.skipped = 0

    def take(self, now_s: float) -> bool:
        """Whether one may be written now."""
        self._left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            self.skipped += 1
            return False
        self._left -= 1
        return True

    def told(self) -> dict[str, int]:
        """What the record says of those left out before it."""
        skipped, self.skipped = self.skipped, 0
        return {"left_out": skipped} if skipped else {}


class Course:
    """Wraps one connector's `process` or `resume`."""

    def __init__(self, process: Process, log: ConnectorLogger, verbose: bool) -> None:
        self._process = process
        self._log = log
        self._verbose = verbose
        self._completed = Allowance(float("inf") if verbose else RECORDS_PER_S)
        self._failed = Allowance(float("inf") if verbose else RECORDS_PER_S)

    async def __call__(self, job: JobView, context: Context) -> Any:
        """As `process`."""
        if self._verbose:
            log = self._log.with_job(job)
            log.job_received(job.carried.size if isinstance(job.carried, BlobRef) else len(job.carried))
            log.job_started()
            context.on_progress = log.job_progress
        begun_s = time.monotonic()
        try:
            value = await self._process(job, context)
        except BaseException as error:  # it is raised again: this only tells of it
            self._tell_failure(job, context, error, begun_s)
            raise
        now_s = time.monotonic()
        if self._completed.take(now_s):
            self._log.with_job(job).job_completed(now_s - begun_s, **self._completed.told())
        return value

    def _tell_failure(self, job: JobView, context: Context, error: BaseException, begun_s: float) -> None:
        now_s = time.monotonic()
        if not self._failed.take(now_s):
            return
        log = self._log.with_job(job)
        if context.stop_reason or isinstance(error, asyncio.CancelledError):
            log.info("job_stopped", reason=context.stop_reason or "close", duration_s=round(now_s - begun_s, 6))
        else:
            log.job_failed(error, now_s - begun_s, **self._failed.told())


def with_entrance(process: Process, can_process_job: Process) -> Process:
    """`process` of those jobs alone that the connector says are for it."""

    async def asked(job: JobView, context: Context) -> Any:
        await context.load()
        if not await can_process_job(job, context):
            raise InvalidInput(f"{job.details.service} does not take this job")
        return await process(job, context)

    return asked


def with_plugins(process: Process, plugins: Plugins) -> Process:
    """`process` between the hooks of plugins."""

    async def hooked(job: JobView, context: Context) -> Any:
        job = await plugins.before(job, context)
        return await plugins.after(job, await process(job, context), context)

    return hooked


def with_cache(process: Process, cache: Cache) -> Process:
    """`process`, unless the result of the same work is held still: that costs nothing, and has used nothing."""

    async def looked_up(job: JobView, context: Context) -> Any:
        key = cache.key_of(await context.load())
        found = cache.get(key, time.monotonic())
        if found is not MISSING:
            return Result(found.value) if isinstance(found, Result) else found
        found = await process(job, context)
        with contextlib.suppress(TypeError):  # what cannot be written fails its job, as without a cache
            cache.put(key, found, len(msgspec.msgpack.encode(found)), time.monotonic())
        return found

    return looked_up


def with_span(process: Process, tracer: Tracer) -> Process:
    """`process` in a span of the job's trace; what it calls carries the span on (`context.trace`)."""

    async def traced(job: JobView, context: Context) -> Any:
        with tracer.run(job, context):
            return await process(job, context)

    return traced
