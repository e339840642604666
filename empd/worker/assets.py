"""The worker's side of `context.assets`: one storage for each service, and each attempt's files in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from empd.asset import AssetConfig, AssetContent, AssetFailed, AssetRef
from empd.assets.naming import Mark
from empd.assets.notes import Held, Note, hold
from empd.assets.room import Room
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

    def __init__(
        self, service: str, config: AssetConfig, root: Path, free_bytes_min: int, log: Log, room: Room | None = None
    ) -> None:
        log.redact.learn(config.secrets)
        self.on_failure: Callable[[], None] = lambda: None
        self.service = service
        self.log = log
        self.saver = Saver(config, root, free_bytes_min, room)
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
        except Exception as error:  # the store's library is foreign code; that it works is not known
            return f"assets: {self.log.redact(describe(error))}"
        self._failing = False
        return ""

    def failed(self, error: AssetFailed) -> None:
        """A job could not save something."""
        if error.upstream and not self._failing:
            self._failing = True
            self.log("assets_failed", "warning", service=self.service, reason=error.message)
            self.on_failure()

    async def close(self) -> None:
        """Lets go of the store."""
        await self.saver.close()


class AttemptAssets:
    """An AssetPort. Once the attempt has ended, `settle` and then `settled`, or `discard`.

    From its first asset on it holds a note, by which what it saved is found should this process die.
    """

    def __init__(self, storage: Storage, context: Context) -> None:
        self._storage = storage
        self._context = context
        self._job: JobAssets | None = None
        self._noting = asyncio.Lock()
        self._note: Held | None = None
        self._whole = True

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
            await self._begin(self._job)
            return await self._job.save(content, output=output, name=name, metadata=metadata)
        except BaseException as error:  # raised again: what was on its way may have arrived
            self._whole = False
            if isinstance(error, AssetFailed):
                self._storage.failed(error)
            raise

    async def settle(self) -> None:
        """The attempt succeeded: what earlier ones left goes. Never raises: the result is good all the same."""
        if self._job is not None and self._context.job.attempt > 1:
            await self._tidy("assets_swept", self._job.settle())

    def settled(self, counts: bool) -> None:
        """The outcome is durable; it `counts`, or the broker has no use for it."""
        note, self._note = self._note, None
        if note is not None:
            asyncio.get_running_loop().run_in_executor(None, note.drop if counts else note.release)

    async def discard(self) -> None:
        """The attempt does not count: what it saved goes. Never raises: what stays is found by its note."""
        if self._job is not None:
            gone = await self._tidy("assets_discarded", self._job.discard())
            self.settled(gone and self._whole)

    async def _begin(self, job: JobAssets) -> None:
        async with self._noting:
            if self._note is not None or not job.keeps:
                return
            config, mark = self._storage.saver.config, job.naming.mark
            note = Note(
                service=self._storage.service,
                place=config.place,
                instance=mark.instance,
                job=mark.job_id,
                epoch=mark.epoch,
                attempt=self._context.job.attempt,
                prefix=job.naming.prefix,
                file_name=job.naming.file_name,
            )
            try:
                self._note = await asyncio.to_thread(hold, self._storage.saver.root, note)
            except OSError as error:
                # A full disk here is no reason not to save elsewhere; only what a crash leaves may then stay.
                self._storage.log("asset_note_failed", "warning", job=format_id(mark.job_id), reason=describe(error))

    async def _tidy(self, event: str, work: Coroutine[Any, Any, int]) -> bool:
        try:
            async with asyncio.timeout(TIDY_S_MAX):
                removed = await work
        except (AssetFailed, TimeoutError) as error:
            self._storage.log(
                "assets_left_over", "warning", job=format_id(self._context.job.id), reason=describe(error)
            )
            return False
        if removed:
            self._storage.log(event, "info", job=format_id(self._context.job.id), count=removed)
        return True
