"""A few threads of one service's own. Daemon threads: a call that never returns must not hold up the process's end."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any


class WorkThreads:
    """Runs functions one after the other in each of `count` threads."""

    def __init__(self, name: str, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """A future of the function's value; cancelling it does not stop the function."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put((function, future))
        return future

    async def finish(self, function: Callable[[], Any]) -> Any:
        """The function's value. A thread cannot be stopped: when cancelled, this waits for its end all the same."""
        future = self.submit(function)
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError:
                continue  # the job's context says so to whoever looks; if nobody does, the hang ladder follows
        return future.result()

    def close(self) -> None:
        """Lets the threads end after what they do now."""
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            function, future = item
            try:
                value = function()
            except BaseException as error:  # handed to whoever waits; a StopIteration cannot be raised in a future
                carried = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
                self._deliver(future, None, carried)
            else:
                self._deliver(future, value, None)
            del function, future, item

    def _deliver(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        def settle() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more
