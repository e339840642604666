"""`AsyncClient`: the conversation for programs with an event loop (asyncio's own, or uvloop)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from empd.client.asyncjobs import AsyncJobHandle, AsyncJobSet
from empd.client.asyncpump import AsyncPump
from empd.client.blocking import (
    CLOSE_LINGER_S,
    CLOSE_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    WINDOW,
)
from empd.client.bulk import Bulk
from empd.client.conversation import Conversation
from empd.client.endpoint import find_endpoint, find_history, find_keys, no_answer
from empd.client.options import Identified, OptionsEncoder, SubmitOptions, as_number, listed
from empd.client.payloads import Payloads, many
from empd.client.submissions import JOBS_PER_FRAME
from empd.errors import FailureClass, NotRunning, Refused
from empd.payload import BlobRef
from empd.record import Record
from empd.result import JobStatus
from empd.wire import frames
from empd.wire.frames import Reset, Rows


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
        curve_dir: str | Path | None = None,
    ) -> None:
        self.endpoint = find_endpoint(endpoint)
        self.history_endpoint = history_endpoint or find_history(self.endpoint)
        self.window = window
        self._connect_timeout_s = connect_timeout_s
        self._options = OptionsEncoder()
        self._conversation = Conversation(name)
        keys = find_keys(self.endpoint, curve_dir)
        self._pump = AsyncPump(self._conversation, self.endpoint, self.history_endpoint, keys)
        self._payloads: Payloads | None = None
        self._connecting: asyncio.Task[Payloads] | None = None

    # --- jobs in -------------------------------------------------------------------------------------------------

    async def submit(
        self, service: str, payload: Any, *, idempotency_key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> AsyncJobHandle:
        """Submits one job; waits only while the window is full. Raises like `Client.submit`."""
        payloads = self._payloads or await self.connect()
        encoding, carried = payloads.encode(payload)
        raw = self._options.encode(service, encoding, options)
        conversation = self._conversation
        self._pump.check()
        if len(conversation.open) >= self.window:
            await self.wait_for(lambda: len(conversation.open) < self.window, None)
        handle = AsyncJobHandle(0, self)
        conversation.submit(handle, raw, carried, idempotency_key or "")
        self._pump.submitted()
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
        left, keys = many(payloads), None if idempotency_keys is None else iter(idempotency_keys)
        conversation = self._conversation
        while chunk := list(islice(left, max(1, min(JOBS_PER_FRAME, self.window)))):
            encoded = [encode(payload) for payload in chunk]
            raws = {name: self._options.encode(service, name, options) for name in {pair[0] for pair in encoded}}
            self._pump.check()
            room = self.window - len(chunk)
            if len(conversation.open) > room:
                await self.wait_for(lambda room=room: len(conversation.open) <= room, None)  # type: ignore[misc]
            conversation.submit_many(jobs.add(len(chunk)), encoded, raws, keys)
            self._pump.exchange()
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
            selected.cursor, selected.after = body["cursor"], body["after"]

    async def cancel(
        self, jobs: Iterable[Identified | str | int] = (), *, dry_run: bool = False, **filters: Any
    ) -> dict[str, list[str]]:
        """Asks to stop jobs, by id or by filters. Returns what `Client.cancel` does."""
        return await self._bulk(Bulk(frames.Cancel, jobs, dry_run, filters))

    async def retry(
        self, jobs: Iterable[Identified | str | int] = (), *, dry_run: bool = False, **filters: Any
    ) -> dict[str, list[str]]:
        """Gives dead-lettered jobs another chance. Returns what `Client.retry` does."""
        return await self._bulk(Bulk(frames.Retry, jobs, dry_run, filters))

    async def _bulk(self, bulk: Bulk) -> dict[str, list[str]]:
        while (make := bulk.following()) is not None:
            bulk.answered(await self._request(make))
        return bulk.found

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
        self._pump.exchange()
        try:
            while True:
                await self.wait_for(lambda: subscription.frames, None)
                frame = subscription.frames.popleft()
                yield frame
                conversation.acknowledge(subscription, frame)
                self._pump.exchange()
        finally:
            conversation.subscriptions.pop(consumer, None)

    def read_blob(self, ref: BlobRef) -> bytes:
        """A blob's content, read at once. Raises BlobMissing."""
        assert self._payloads is not None, "a result came, so the client is connected"
        return self._payloads.read(ref)

    # --- waiting -------------------------------------------------------------------------------------------------

    async def wait_for(self, done: Callable[[], object], timeout: float | None) -> bool:
        """Waits until `done()`, looking again after everything that comes; False after `timeout` seconds."""
        return await self._pump.wait_for(done, timeout)

    async def settle(self, handle: AsyncJobHandle, timeout: float | None) -> bool:
        """Waits for the end of one job; False after `timeout` seconds."""
        self._pump.check()
        if handle.foreign and not handle.ended:
            self._conversation.submissions.adopt(handle)
            self._pump.exchange()
        try:
            return await self._pump.ended(handle, timeout)
        finally:
            if handle.foreign and not handle.ended:
                self._conversation.submissions.release(handle)

    async def ask_status(self, handle: AsyncJobHandle) -> JobStatus:
        """Asks for the present state of a job, history included."""
        await self.connect()
        if handle.foreign and not handle.ended:
            self._conversation.submissions.adopt(handle)
        [request] = self._conversation.ask([handle.number])
        self._pump.exchange()
        try:
            await self._pump.ended(request, None)
            statuses: list[JobStatus] = request.value()
            if not handle.ended and handle.batch is None and statuses[0].state == "unknown":
                await self._pump.ended(handle, None)
        finally:
            if handle.foreign and not handle.ended:
                self._conversation.submissions.release(handle)
        return handle.final_status() if handle.ended else statuses[0]

    async def _request(self, make: Callable[[int], Record]) -> Any:
        await self.connect()
        request = self._conversation.request(make)
        self._pump.exchange()
        if not await self._pump.ended(request, REQUEST_TIMEOUT_S):
            raise NotRunning(f"no answer from {self.endpoint} for {REQUEST_TIMEOUT_S:.0f} s; is the daemon up?")
        return request.value()

    async def connect(self) -> Payloads:
        """Makes the first contact, once. Raises NotRunning when no daemon answers in time."""
        self._pump.check()
        if self._payloads is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._greet())
            self._payloads = await asyncio.shield(self._connecting)
        return self._payloads

    async def _greet(self) -> Payloads:
        conversation = self._conversation
        self._pump.start()
        if not await self.wait_for(lambda: conversation.ready, self._connect_timeout_s) or not conversation.welcome:
            silence = no_answer(self.endpoint)
            self._pump.end(silence, 0.0)
            raise silence
        return Payloads(conversation.welcome)

    # --- the end -------------------------------------------------------------------------------------------------

    async def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """Waits up to `timeout` seconds until what was submitted is acknowledged, then ends the conversation. Raises
        NotRunning at the end when jobs were left that the daemon had not acknowledged."""
        left_behind = None
        if self._conversation.failed is None and self._payloads is not None:
            await self.flush(timeout)
            left_behind = self._conversation.submissions.left_behind(timeout)
            self._conversation.bye(forget=True)
            self._pump.exchange()
        self._pump.end(Refused(FailureClass.UNAVAILABLE, "this client is closed"), CLOSE_LINGER_S)
        if left_behind is not None:
            raise left_behind

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            await self.close()
        except NotRunning:
            if error is None:  # else that one says more
                raise
