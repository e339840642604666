"""Drops from history what is past retention, a little at a time, and the blobs that only it referred to."""

from __future__ import annotations

import asyncio
from typing import Any

from empd import clock
from empd.errors import EmpdError
from empd.memory.arena import Arena
from empd.store.history import History
from empd.web.archive import Archive
from empd.web.duty import Duty

EVERY_S = 30.0
EVERY_S_MIN = 0.5
ROWS_AT_ONCE = 2_000


class Retention(Duty):
    """A background duty of the web process."""

    name = "retention"

    def __init__(self, archive: Archive, arena: Arena, settings: Any) -> None:
        super().__init__()
        self._archive = archive
        self._arena = arena
        self._result_keep_s = float(settings.result_keep_s)
        self._history_keep_s = float(settings.history_keep_s)
        shortest_s = min(self._result_keep_s, self._history_keep_s)
        self._every_s = min(EVERY_S, max(shortest_s / 4, EVERY_S_MIN))

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
