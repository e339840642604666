"""The worker's side of `context.assets`: one storage for each service, and each attempt's files in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from empd.asset import AssetConfig, AssetContent, AssetFailed, AssetRef
from empd.assets.naming import Mark
from empd.assets.saver import JobAssets, Saver
from empd.connectors.context import Context
from empd.connectors.failures import describe
from empd.job import format_id
from empd.worker.log import Log

TIDY_S_MAX = 30.0
"""A result waits no longer than this for what earlier attempts left to be removed."""


class Storage:
    """Where one service's files go.

    When the store itself fails, `on_failure()` is called, and `problem` says why no job should be taken until it is
    well again. Services that save nothing never hear of it.
    """

    def __init__(self, service: str, config: AssetConfig, root: Path, free_bytes_min: int, log: Log) -> None:
        log.redact.learn(config.secrets)
        self.on_failure: Callable[[], None] = lambda: None
        self._service = service
        self.log = log
        self.saver = Saver(config, root, free_bytes_min)
        self._failing = False

    def attempt(self, context: Context) -> AttemptAssets:
        """The files of one attempt."""
        return AttemptAssets(self, context)

    async def problem(self) -> str:
        """Asks a store that failed whether it works again; empty when it does, or never failed."""
        if not self._failing:
            return ""
        try:
            await self.saver.check()
        except AssetFailed as error:
            return f"assets: {self.log.redact(error.message)}"
        self._failing = False
        return ""

    def failed(self, error: AssetFailed) -> None:
        """A job could not save something."""
        if error.upstream and not self._failing:
            self._failing = True
            self.log("assets_failed", "warning", service=self._service, reason=error.message)
            self.on_failure()

    async def close(self) -> None:
        """Lets go of the store."""
        await self.saver.close()


class AttemptAssets:
    """An AssetPort. `settle` or `discard` once the attempt has ended."""

    def __init__(self, storage: Storage, context: Context) -> None:
        self._storage = storage
        self._context = context
        self._job: JobAssets | None = None

    async def save(
        self, content: AssetContent, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        """See AssetPort.save. Raises AssetFailed."""
        try:
            if self._job is None:
                context = self._context
                mark = Mark(context.instance, context.job.id, context.job.epoch)
                payload = await context.load()
                self._job = self._job or self._storage.saver.bind(mark, payload)
            return await self._job.save(content, output=output, name=name, metadata=metadata)
        except AssetFailed as error:
            self._storage.failed(error)
            raise

    async def settle(self) -> None:
        """The attempt succeeded: what earlier ones left goes. Never raises: the result is good all the same."""
        if self._job is not None and self._context.job.attempt > 1:
            await self._tidy("assets_swept", self._job.settle())

    async def discard(self) -> None:
        """The attempt does not count: what it saved goes. Never raises: the attempt that counts sweeps again."""
        if self._job is not None:
            await self._tidy("assets_discarded", self._job.discard())

    async def _tidy(self, event: str, work: Coroutine[Any, Any, int]) -> None:
        try:
            async with asyncio.timeout(TIDY_S_MAX):
                removed = await work
        except (AssetFailed, TimeoutError) as error:
            self._storage.log(
                "assets_left_over", "warning", job=format_id(self._context.job.id), reason=describe(error)
            )
            return
        if removed:
            self._storage.log(event, "info", job=format_id(self._context.job.id), count=removed)
