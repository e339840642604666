"""A background duty of the web process: one task, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod


class Duty(ABC):
    """One task that runs `_run`, which never ends by itself."""

    name = "duty"

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _run(self) -> None: ...

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Stops; what runs in a thread is waited for by its owner. Stopping twice is fine."""
        task, self._task = self._task, None
        await end(task)


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancels a task that never ends by itself; returns when it has."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
