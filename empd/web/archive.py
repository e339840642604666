"""History, kept off the event loop: one thread owns the database, everybody awaits it.

SQLite calls take milliseconds when the disk is busy, and a batch of rows holds the write lock; the loop that
serves requests must not wait for either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from empd.store.history import History, HistoryError

T = TypeVar("T")


class Archive:
    """The history database behind its thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "history")
        self._history: History | None = None
        self.through_seq = 0

    async def open(self) -> None:
        """Opens the database; makes it where there is none. Raises HistoryError."""
        self._history = await self._run(lambda: History.open(self._path))
        self.through_seq = await self.call(lambda history: history.cursor)

    async def call(self, ask: Callable[[History], T]) -> T:
        """`ask(history)` in the thread."""
        history = self._history
        if history is None:
            raise HistoryError("history is being opened; try again in a moment", damaged=False)
        return await self._run(lambda: ask(history))

    async def rebuild(self) -> None:
        """Moves the damaged file aside and begins a new one, to be filled from what the journal still has."""
        history, self._history = self._history, None
        if history is not None:
            await self._run(history.close)
        self._history = await self._run(lambda: History.open(self._path, rebuild=True))
        self.through_seq = await self.call(lambda history: history.cursor)

    async def close(self) -> None:
        """Ends what runs and closes. Closing twice is fine."""
        history, self._history = self._history, None
        if history is not None:
            await self._run(history.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
