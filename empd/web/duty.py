"""A background duty of the web process: one task, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod

AGAIN_S = 5.0

_log = logging.getLogger("empd.web")


class Duty(ABC):
    """One task that runs `_run`, which ends by itself only where there is nothing to do."""

    name = "duty"

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _run(self) -> None: ...

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._live(), name=self.name)

    async def _live(self) -> None:
        while True:
            try:
                await self._run()
                return
            except Exception:  # nobody waits for a duty: without this it would be gone for good, and nobody the wiser
                _log.exception("%s failed, and begins anew in %g s", self.name, AGAIN_S)
            await asyncio.sleep(AGAIN_S)

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
