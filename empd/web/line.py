"""One connection to the broker on the event loop: the client's conversation, moved by descriptors and a tick.

`Client` and `AsyncClient` wait for a daemon and fetch results for their caller. The web process needs less and
more: it starts before the broker answers, outlives it, and wants raw answers, pages and journal rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any

from empd.client.channel import Channel
from empd.client.conversation import Conversation
from empd.client.exchange import exchange
from empd.client.handle import Handle
from empd.errors import NotRunning
from empd.record import Record
from empd.wire.frames import Reset, Rows, Subscribe

TICK_S = 0.5


class Line:
    """A conversation with the broker at `endpoint`, over any number of its restarts.

    Requests wait for a connection, up to the caller's time-out. Broken for good (`broken`) by bytes that are no
    frame; whoever holds it then makes a new one.
    """

    def __init__(self, endpoint: str, name: str, curve_dir: Path | None = None) -> None:
        self._channel = Channel(endpoint, curve_dir)
        self._conversation = Conversation(name)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._closed = False
        for descriptor in self._channel.descriptors:
            self._loop.add_reader(descriptor, self._exchange)
        self._timer = self._loop.call_soon(self._tick)

    @property
    def broken(self) -> bool:
        """True when nothing more will be answered here."""
        return self._closed or self._conversation.failed is not None

    @property
    def ready(self) -> bool:
        """True while the broker has greeted this connection."""
        return self._conversation.ready and not self.broken

    async def instance(self, timeout_s: float) -> str:
        """The random id of the state directory that this broker serves. Raises NotRunning after `timeout_s`."""
        self._check()
        conversation = self._conversation
        if not await self._until(lambda: conversation.ready, timeout_s) or conversation.welcome is None:
            raise NotRunning("the broker does not answer")
        return conversation.welcome.instance

    async def request(self, make: Callable[[int], Record], timeout_s: float) -> Any:
        """The answer to a numbered request. Raises NotRunning after `timeout_s`, Refused when the broker says no."""
        self._check()
        request = self._conversation.request(make)
        return await self._answer(request, timeout_s)

    async def look(self, ids: list[int], timeout_s: float) -> tuple[list[Handle], list[Any]]:
        """What the broker knows of jobs: handles of the ended, JobStatus of the others (`unknown` ones included)."""
        self._check()
        conversation = self._conversation
        handles = [Handle(number, foreign=True) for number in ids]
        for handle in handles:
            conversation.submissions.adopt(handle)
        try:
            statuses = [await self._answer(request, timeout_s) for request in conversation.ask(ids)]
        finally:
            for handle in handles:
                self.release(handle)
            conversation.take_unknown()
        return [handle for handle in handles if handle.finished], [status for part in statuses for status in part]

    async def submit(self, jobs: Iterable[tuple[Any, Any, str]], timeout_s: float) -> list[Handle]:
        """Submits (options, payload, idempotency key) each and waits until all are acknowledged or refused.

        Raises NotRunning after `timeout_s`: the jobs may still be accepted later.
        """
        self._check()
        handles = []
        for options, payload, key in jobs:
            handle = Handle(0)
            self._conversation.submit(handle, options, payload, key)
            handles.append(handle)
        if not await self._until(lambda: all(each.batch is None or each.ended for each in handles), timeout_s):
            raise NotRunning("the broker did not acknowledge in time; the jobs may still be accepted")
        return handles

    def release(self, handle: Handle) -> None:
        """Nobody waits for this job any more: its result is passed over when it comes."""
        if not handle.ended:
            self._conversation.submissions.release(handle)

    async def ended(self, handle: Handle, timeout_s: float) -> bool:
        """Waits for a job's end; False after `timeout_s`."""
        return await self._until(lambda: handle.ended, timeout_s)

    async def follow(self, subscribe: Subscribe) -> AsyncGenerator[Rows | Reset, None]:
        """Journal rows as they come; taking the next frame acknowledges the one before. Raises what ends the line."""
        self._check()
        conversation = self._conversation
        subscription = conversation.subscribe(subscribe)
        self._exchange()
        try:
            while True:
                while not subscription.frames:
                    self._check()
                    await self._until(lambda: subscription.frames, TICK_S)
                frame = subscription.frames.popleft()
                yield frame
                conversation.acknowledge(subscription, frame)
                self._exchange()
        finally:
            conversation.subscriptions.pop(subscribe.consumer, None)

    def close(self) -> None:
        """Says good-bye where somebody listens, and closes. Closing twice is fine."""
        if self._closed:
            return
        if self._conversation.failed is None:
            self._conversation.bye(forget=True)
            self._exchange()
        self._closed = True
        self._timer.cancel()
        for descriptor in self._channel.descriptors:
            self._loop.remove_reader(descriptor)
        self._conversation.fail(NotRunning("the web process is going"))
        self._changed.set()
        self._channel.close(0.0)

    # --- moving bytes --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._conversation.failed is not None:
            raise NotRunning(f"the conversation with the broker broke: {self._conversation.failed}")
        if self._closed:
            raise NotRunning("the connection to the broker is closed")

    async def _answer(self, request: Any, timeout_s: float) -> Any:
        if not await self._until(lambda: request.ended, timeout_s):
            raise NotRunning("the broker does not answer")
        return request.value()

    async def _until(self, done: Callable[[], object], timeout_s: float) -> bool:
        """Moves bytes until `done()`; False after `timeout_s`."""
        deadline = self._loop.time() + timeout_s
        self._exchange()
        while not done():
            self._check()
            left_s = deadline - self._loop.time()
            if left_s <= 0:
                return False
            # Every exchange that brought something sets this event and puts a new one in its place.
            changed = self._changed
            try:
                # Not wait_for: before Python 3.12 it may swallow a cancellation that comes with the event.
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                return bool(done())
        return True

    def _tick(self) -> None:
        """A greeting that got no answer is repeated; the descriptors alone would not say so."""
        self._exchange()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _exchange(self) -> None:
        """Takes all that has come and sends all that is to go; afterwards the descriptors are safe to wait on."""
        if self._closed:
            return
        if exchange(self._channel, self._conversation):
            self._changed.set()
            self._changed = asyncio.Event()
