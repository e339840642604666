"""Who moves bytes in an asynchronous client: the event loop's readers and one timer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from empd.client.channel import Channel
from empd.client.conversation import Conversation
from empd.client.exchange import exchange
from empd.client.history import ask_history
from empd.errors import EmpdError, FailureClass, Refused

HISTORY_TRIES = 3
HISTORY_LAG_S = 0.02


class Watchable(Protocol):
    @property
    def ended(self) -> bool: ...

    def watch(self, callback: Callable[[Any], None]) -> None: ...

    def unwatch(self, callback: Callable[[Any], None]) -> None: ...


class AsyncPump:
    """The channel and the conversation within one event loop."""

    def __init__(
        self, conversation: Conversation, endpoint: str, history_endpoint: str, curve_dir: Path | None
    ) -> None:
        self._conversation = conversation
        self._endpoint = endpoint
        self._curve_dir = curve_dir
        self._history_endpoint = history_endpoint
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Channel | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._history_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connects, within the running loop."""
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(self._endpoint, self._curve_dir)
        for descriptor in self._channel.descriptors:
            self._loop.add_reader(descriptor, self.exchange)
        self.exchange()

    async def wait_for(self, done: Callable[[], object], timeout: float | None) -> bool:
        """Waits until `done()`, looking again after everything that comes; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    self.check()
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            return False
        return True

    async def ended(self, one: Watchable, timeout: float | None) -> bool:
        """Waits for the end of one job or request; False after `timeout` seconds."""
        if one.ended:
            return True
        future = asyncio.get_running_loop().create_future()

        def wake(_: object) -> None:
            if not future.done():
                future.set_result(None)

        one.watch(wake)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        finally:
            one.unwatch(wake)
        return True

    def check(self) -> None:
        """Raises what ended the conversation, if it is over."""
        if os.getpid() != self._pid:
            reason = "this client was made before os.fork(); make a new AsyncClient in the child"
            raise Refused(FailureClass.REFUSED, reason)
        if (error := self._failure()) is not None:
            raise error

    def _failure(self) -> EmpdError | None:
        return self._conversation.failed

    def exchange(self) -> None:
        """Takes all that has come and sends all that is to go, until the edge-triggered descriptors are quiet."""
        channel, conversation = self._channel, self._conversation
        if channel is None or conversation.failed is not None:
            return
        came = exchange(channel, conversation)
        if (error := self._failure()) is not None:
            self.end(error, 0.0)
            return
        if came:
            self._tell()
        self._set_timer()
        if conversation.unknown and self._history_task is None and self._loop is not None:
            self._history_task = self._loop.create_task(self._ask_history())

    def submitted(self) -> None:
        """A job was submitted: moves bytes, unless it has to wait for an answer, of which the event loop tells."""
        if not self._conversation.submissions.held_back:
            self.exchange()

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ns = self._conversation.deadline_ns()
        if due_ns is not None and self._loop is not None:
            left_s = max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            self._timer = self._loop.call_later(left_s, self.exchange)

    async def _ask_history(self) -> None:
        """Asks, outside the loop's thread, for jobs that the broker has forgotten; they end with what it says."""
        conversation = self._conversation
        try:
            while ids := conversation.take_unknown():
                for left in reversed(range(HISTORY_TRIES)):
                    try:
                        answer = await asyncio.to_thread(ask_history, self._history_endpoint, ids)
                    except EmpdError as error:
                        if not left:
                            for number in ids:
                                conversation.submissions.fail(number, error)
                        continue
                    conversation.lookups.answered(ids, answer)
                    break
                self._tell()
                if conversation.unknown:
                    # History reads the journal a moment behind the broker.
                    await asyncio.sleep(HISTORY_LAG_S)
        finally:
            self._history_task = None

    def end(self, error: EmpdError, linger_s: float) -> None:
        """Ends everything open with `error` and closes the socket. Twice is fine."""
        self._conversation.fail(error)
        if self._history_task is not None:
            self._history_task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        channel, self._channel = self._channel, None
        if channel is not None and self._loop is not None:
            for descriptor in channel.descriptors:
                self._loop.remove_reader(descriptor)
            channel.close(linger_s)
        self._tell()
