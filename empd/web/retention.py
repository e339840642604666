"""Drops from history what is past retention, a little at a time, and the blobs that only it referred to."""

from __future__ import annotations

import asyncio
from typing import Any

from empd import clock
from empd.errors import EmpdError
from empd.memory.arena import Arena
from empd.store.history import History
from empd.web.archive import Archive

EVERY_S = 30.0
EVERY_S_MIN = 0.5
ROWS_AT_ONCE = 2_000


class Retention:
    """A background duty of the web process."""

    def __init__(self, archive: Archive, arena: Arena, settings: Any) -> None:
        self._archive = archive
        self._arena = arena
        self._result_keep_s = float(settings.result_keep_s)
        self._history_keep_s = float(settings.history_keep_s)
        shortest_s = min(self._result_keep_s, self._history_keep_s)
        self._every_s = min(EVERY_S, max(shortest_s / 4, EVERY_S_MIN))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to sweep."""
        self._task = asyncio.create_task(self._run(), name="retention")

    def stop(self) -> None:
        """Stops. Stopping twice is fine."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                while await self._archive.call(self.sweep):
                    # Requests get their turn at the database between two slices.
                    await asyncio.sleep(0.05)
            except EmpdError:
                # The projector meets the same trouble, and deals with it.
                pass
            await asyncio.sleep(self._every_s)

    def sweep(self, history: History) -> int:
        """One slice, in the archive's thread; how much was dropped."""
        dropped = history.expire(clock.now().wall_ns, self._result_keep_s, self._history_keep_s, ROWS_AT_ONCE)
        for blob in history.take_expired_blobs():
            self._arena.remove(blob.id)
        return dropped
