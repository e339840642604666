"""`AsyncClient`: the conversation for programs with an event loop (asyncio's own, or uvloop)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from typing import Any, Protocol, Unpack

from empd.client.asyncjobs import AsyncJobHandle, AsyncJobSet
from empd.client.blocking import (
    CLOSE_LINGER_S,
    CLOSE_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    HISTORY_LAG_S,
    REQUEST_TIMEOUT_S,
    WINDOW,
)
from empd.client.channel import Channel
from empd.client.conversation import Conversation
from empd.client.endpoint import find_endpoint, find_history
from empd.client.history import ask_history
from empd.client.options import Identified, OptionsEncoder, SubmitOptions, as_number, listed, named_ids, selection
from empd.client.payloads import Payloads
from empd.client.submissions import JOBS_PER_FRAME
from empd.errors import EmpdError, FailureClass, NotRunning, ProtocolError, Refused
from empd.payload import BlobRef
from empd.record import Record
from empd.result import JobStatus
from empd.wire import frames
from empd.wire.frames import Reset, Rows

HISTORY_TRIES = 3


class _Watchable(Protocol):
    @property
    def ended(self) -> bool: ...

    def watch(self, callback: Callable[[Any], None]) -> None: ...

    def unwatch(self, callback: Callable[[Any], None]) -> None: ...


class AsyncClient:
    """A client of one daemon within one event loop: the same names as `Client`, with `await`.

        async with AsyncClient() as client:
            handle = await client.submit("square", {"x": 3})
            print(await handle.result())

    It connects when it is entered, or at its first use. Arguments and errors are those of `Client`.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        window: int = WINDOW,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        name: str = "",
        history_endpoint: str | None = None,
    ) -> None:
        self.endpoint = find_endpoint(endpoint)
        self.history_endpoint = history_endpoint or find_history(self.endpoint)
        self.window = window
        self._connect_timeout_s = connect_timeout_s
        self._options = OptionsEncoder()
        self._conversation = Conversation(name)
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Channel | None = None
        self._payloads: Payloads | None = None
        self._connecting: asyncio.Task[Payloads] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._history_task: asyncio.Task[None] | None = None

    # --- jobs in -------------------------------------------------------------------------------------------------

    async def submit(
        self, service: str, payload: Any, *, idempotency_key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> AsyncJobHandle:
        """Submits one job; waits only while the window is full. Raises like `Client.submit`."""
        payloads = self._payloads or await self.connect()
        encoding, carried = payloads.encode(payload)
        raw = self._options.encode(service, encoding, options)
        conversation = self._conversation
        self._check()
        if len(conversation.open) >= self.window:
            await self.wait_for(lambda: len(conversation.open) < self.window, None)
        handle = AsyncJobHandle(0, self)
        conversation.submit(handle, raw, carried, idempotency_key or "")
        self._exchange()
        return handle

    async def submit_many(
        self,
        service: str,
        payloads: Iterable[Any],
        *,
        idempotency_keys: Iterable[str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncJobSet:
        """Submits a job for each payload, in frames of up to 256; waits while the window is full."""
        encode = (self._payloads or await self.connect()).encode
        jobs = AsyncJobSet(self)
        left, keys = iter(payloads), iter(idempotency_keys or ())
        conversation = self._conversation
        while chunk := list(islice(left, max(1, min(JOBS_PER_FRAME, self.window)))):
            encoded = [encode(payload) for payload in chunk]
            raws = {name: self._options.encode(service, name, options) for name in {pair[0] for pair in encoded}}
            self._check()
            room = self.window - len(chunk)
            if len(conversation.open) > room:
                await self.wait_for(lambda room=room: len(conversation.open) <= room, None)  # type: ignore[misc]
            conversation.seal()
            for encoding, carried in encoded:
                conversation.submit(jobs.add(), raws[encoding], carried, next(keys, ""))
            conversation.seal()
            self._exchange()
        return jobs

    async def flush(self, timeout: float | None = None) -> bool:
        """Waits until every submitted job is acknowledged or refused; False after `timeout` seconds."""
        return await self.wait_for(lambda: self._conversation.flushed, timeout)

    # --- what is known -------------------------------------------------------------------------------------------

    async def job(self, job_id: str | int) -> AsyncJobHandle:
        """A handle for any job. Raises ValueError when it is no id, Refused (not_found) when nobody knows the job."""
        number = as_number(job_id)
        mine = self._conversation.open.get(number)
        if isinstance(mine, AsyncJobHandle):
            return mine
        handle = AsyncJobHandle(number, self, foreign=True)
        await self.ask_status(handle)
        if isinstance(handle.error, Refused):
            raise handle.error
        return handle

    async def status(self) -> dict[str, Any]:
        """The daemon's picture of its queues, its workers and itself."""
        body: dict[str, Any] = await self._request(frames.Status)
        return body

    async def jobs(self, **filters: Any) -> AsyncIterator[JobStatus]:
        """The unfinished and dead-lettered jobs that fit the filters (fields of JobFilter), page by page."""
        selected = frames.JobFilter(**filters)
        while True:
            body = await self._request(lambda number: frames.List(number, selected))
            for row in body["jobs"]:
                yield listed(row)
            if body.get("cursor") is None:
                return
            selected.cursor = body["cursor"]

    async def cancel(
        self, jobs: Iterable[Identified | str | int] = (), *, dry_run: bool = False, **filters: Any
    ) -> dict[str, list[str]]:
        """Asks to stop jobs, by id or by filters. Returns what `Client.cancel` does."""
        return named_ids(await self._request(selection(frames.Cancel, jobs, dry_run, filters)))

    async def retry(
        self, jobs: Iterable[Identified | str | int] = (), *, dry_run: bool = False, **filters: Any
    ) -> dict[str, list[str]]:
        """Gives dead-lettered jobs another chance. Returns what `Client.retry` does."""
        return named_ids(await self._request(selection(frames.Retry, jobs, dry_run, filters)))

    async def operate(self, verb: str, workers: Iterable[str] = ()) -> dict[str, Any]:
        """An operator's verb: `drain`, `resume`, `reload` or `stop`, for some workers or for all."""
        names = list(workers)
        body: dict[str, Any] = await self._request(lambda number: frames.Operate(number, verb, names))
        return body

    async def subscribe(
        self, consumer: str, from_seq: int = 0, kinds: Iterable[int] = ()
    ) -> AsyncIterator[Rows | Reset]:
        """The journal from `from_seq` on, as it grows. Taking the next frame says that the one before is processed."""
        await self.connect()
        conversation = self._conversation
        subscription = conversation.subscribe(frames.Subscribe(consumer, from_seq, kinds=list(kinds)))
        self._exchange()
        try:
            while True:
                await self.wait_for(lambda: subscription.frames, None)
                frame = subscription.frames.popleft()
                yield frame
                conversation.acknowledge(subscription, frame)
                self._exchange()
        finally:
            conversation.subscriptions.pop(consumer, None)

    def read_blob(self, ref: BlobRef) -> bytes:
        """A blob's content, read at once. Raises BlobMissing."""
        assert self._payloads is not None, "a result came, so the client is connected"
        return self._payloads.read(ref)

    # --- waiting -------------------------------------------------------------------------------------------------

    async def wait_for(self, done: Callable[[], object], timeout: float | None) -> bool:
        """Waits until `done()`, looking again after everything that comes; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    self._check()
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            return False
        return True

    async def settle(self, handle: AsyncJobHandle, timeout: float | None) -> bool:
        """Waits for the end of one job; False after `timeout` seconds."""
        self._check()
        if handle.foreign and not handle.ended:
            self._conversation.submissions.adopt(handle)
            self._exchange()
        try:
            return await self._ended(handle, timeout)
        finally:
            if handle.foreign and not handle.ended:
                self._conversation.submissions.release(handle)

    async def ask_status(self, handle: AsyncJobHandle) -> JobStatus:
        """Asks for the present state of a job, history included."""
        await self.connect()
        if handle.foreign and not handle.ended:
            self._conversation.submissions.adopt(handle)
        [request] = self._conversation.ask([handle.number])
        self._exchange()
        try:
            await self._ended(request, None)
            statuses: list[JobStatus] = request.value()
            if not handle.ended and handle.batch is None and statuses[0].state == "unknown":
                await self._ended(handle, None)
        finally:
            if handle.foreign and not handle.ended:
                self._conversation.submissions.release(handle)
        return handle.final_status() if handle.ended else statuses[0]

    async def _ended(self, one: _Watchable, timeout: float | None) -> bool:
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

    async def _request(self, make: Callable[[int], Record]) -> Any:
        await self.connect()
        request = self._conversation.request(make)
        self._exchange()
        if not await self._ended(request, REQUEST_TIMEOUT_S):
            raise NotRunning(f"no answer from {self.endpoint} for {REQUEST_TIMEOUT_S:.0f} s; is the daemon up?")
        return request.value()

    # --- the socket ----------------------------------------------------------------------------------------------

    async def connect(self) -> Payloads:
        """Makes the first contact, once. Raises NotRunning when no daemon answers in time."""
        self._check()
        if self._payloads is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._greet())
            self._payloads = await asyncio.shield(self._connecting)
        return self._payloads

    async def _greet(self) -> Payloads:
        conversation = self._conversation
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(self.endpoint)
        for descriptor in self._channel.descriptors:
            self._loop.add_reader(descriptor, self._exchange)
        self._exchange()
        if not await self.wait_for(lambda: conversation.ready, self._connect_timeout_s) or not conversation.welcome:
            hint = "start it with `empd run` or set EMPD_ENDPOINT"
            silence = NotRunning(f"no empd answers at {self.endpoint}; {hint}")
            self._end(silence, 0.0)
            raise silence
        return Payloads(conversation.welcome)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            reason = "this client was made before os.fork(); make a new AsyncClient in the child"
            raise Refused(FailureClass.REFUSED, reason)
        if self._conversation.failed is not None:
            raise self._conversation.failed

    def _exchange(self) -> None:
        """Takes all that has come and sends all that is to go, until the edge-triggered descriptors are quiet."""
        channel, conversation = self._channel, self._conversation
        if channel is None or conversation.failed is not None:
            return
        came = False
        now_ns = time.monotonic_ns()
        try:
            while True:
                came = conversation.take_changes(channel.changes(), now_ns) or came
                received = channel.receive()
                for data in received:
                    conversation.receive(data, now_ns)
                came = came or bool(received)
                outgoing = conversation.outgoing(now_ns)
                if outgoing:
                    channel.send(outgoing)
                elif not received:
                    break
        except ProtocolError as error:
            self._end(error, 0.0)
            return
        if came:
            self._tell()
        self._set_timer()
        if conversation.unknown and self._history_task is None and self._loop is not None:
            self._history_task = self._loop.create_task(self._ask_history())

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
            self._timer = self._loop.call_later(left_s, self._exchange)

    async def _ask_history(self) -> None:
        """Asks, outside the loop's thread, for jobs that the broker has forgotten; they end with what it says."""
        conversation = self._conversation
        try:
            while ids := conversation.take_unknown():
                for left in reversed(range(HISTORY_TRIES)):
                    try:
                        answer = await asyncio.to_thread(ask_history, self.history_endpoint, ids)
                    except EmpdError as error:
                        if not left:
                            for number in ids:
                                conversation.submissions.fail(number, error)
                        continue
                    conversation.take_history(ids, answer)
                    break
                self._tell()
                if conversation.unknown:
                    # History reads the journal a moment behind the broker.
                    await asyncio.sleep(HISTORY_LAG_S)
        finally:
            self._history_task = None

    # --- the end -------------------------------------------------------------------------------------------------

    async def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """Waits up to `timeout` seconds until what was submitted is acknowledged, then ends the conversation."""
        if self._conversation.failed is None and self._payloads is not None:
            await self.flush(timeout)
            self._conversation.bye(forget=True)
            self._exchange()
        if self._history_task is not None:
            self._history_task.cancel()
        self._end(Refused(FailureClass.UNAVAILABLE, "this client is closed"), CLOSE_LINGER_S)

    def _end(self, error: EmpdError, linger_s: float) -> None:
        self._conversation.fail(error)
        if self._timer is not None:
            self._timer.cancel()
        channel, self._channel = self._channel, None
        if channel is not None and self._loop is not None:
            for descriptor in channel.descriptors:
                self._loop.remove_reader(descriptor)
            channel.close(linger_s)
        self._tell()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
