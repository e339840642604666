"""The worker's side of a context: what a connector says goes to wire, telemetry and arena."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from empd.connectors.context import AssetPort, Context
from empd.memory.arena import Arena
from empd.payload import BlobRef
from empd.worker.assets import Storage
from empd.worker.report import Reporter
from empd.worker.requests import Requests


class Port:
    """One service's JobPort."""

    def __init__(
        self,
        requests: Requests,
        reporter: Reporter,
        arena: Arena,
        on_progress: Callable[[Context], None],
        storage: Storage,
    ) -> None:
        self.secrets: Mapping[str, str] = {}
        self.instance = ""
        self.storage = storage
        self._redact = storage.log.redact
        self._requests = requests
        self._reporter = reporter
        self._arena = arena
        self._on_progress = on_progress

    def assets(self, context: Context) -> AssetPort:
        """The attempt's files in the service's storage."""
        return self.storage.attempt(context)

    def progress(self, context: Context, fraction: float, message: str, step: int, steps: int) -> None:
        """To the board and to telemetry."""
        self._on_progress(context)
        self._reporter.progress(context, fraction, message, step, steps)

    def partial(self, context: Context, value: Any) -> None:
        """To telemetry."""
        self._reporter.partial(context, value)

    def log(self, context: Context, text: str) -> None:
        """To telemetry."""
        self._reporter.log(context, self._redact(text))

    async def checkpoint(self, context: Context, data: bytes, doubt: str) -> None:
        """To the broker's journal."""
        await self._requests.checkpoint(context.job.id, context.job.epoch, data, self._redact(doubt))

    async def state_get(self, key: str) -> tuple[int, bytes]:
        """From the broker."""
        return await self._requests.state_get(key)

    async def state_set(self, context: Context, key: str, data: bytes, expected_version: int) -> int:
        """To the broker's journal."""
        return await self._requests.state_set((context.job.id, context.job.epoch), key, data, expected_version)

    def read_blob(self, ref: BlobRef) -> bytes:
        """From the arena."""
        return self._arena.read(ref)

    def view_blob(self, ref: BlobRef) -> memoryview:
        """From the arena; the map lives as long as the view."""
        with self._arena.view(ref) as view:
            return view[:]
