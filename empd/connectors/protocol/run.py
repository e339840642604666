"""One attempt at a job whose service answers by messages: its mailbox, and the waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from empd.connectors.context import Context
from empd.connectors.failures import ServiceUnavailable
from empd.connectors.protocol.correlation import Correlation

T = TypeVar("T")


class Stopped(ServiceUnavailable):
    """The job is to stop; the worker knows why."""


class Run:
    """One attempt. `key` is the id under which the service knows the job, `named` whether that is settled.

    `owed`: the job is at the service as far as anybody knows, and is to be cancelled there if this attempt ends
    without its end.
    """

    def __init__(self, context: Context, correlation: Correlation, key: str, *, named: bool) -> None:
        self.context = context
        self.key = key
        self.named = named
        self.owed = False
        self._news = asyncio.Event()
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.box = correlation.expect(key, self._news.set)
        except ValueError:
            raise ServiceUnavailable("an earlier attempt at this job has not let go of it yet") from None

    def stop(self) -> None:
        """Ends the attempt here, whatever the service does."""
        self.box.fail(Stopped("the job was told to stop"))
        if not self._stopped.done():
            self._stopped.set_result(None)

    def wake(self) -> None:
        """Something about the attempt has changed."""
        self._news.set()

    async def unless_stopped(self, waiting: Awaitable[T]) -> T:
        """What `waiting` gives, which is cancelled when the attempt is stopped first. Raises Stopped."""
        task = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait((task, self._stopped), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped("the job was told to stop")
        finally:
            task.cancel()

    async def news(self, limit_s: float) -> bool:
        """Waits for a change; False when none came in time."""
        self._news.clear()
        try:
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True
