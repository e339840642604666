"""What an asynchronous client hands out for its jobs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from empd.client.handle import Handle
from empd.client.jobs import EVENT_INTERVAL_S, stopped_count
from empd.client.options import Identified
from empd.errors import EmpdError, ResultTimeout
from empd.payload import BlobRef
from empd.result import JobStatus


class AsyncOwner(Protocol):
    """What handles need of their client."""

    async def wait_for(self, done: Callable[[], object], timeout: float | None) -> bool: ...
    async def settle(self, handle: AsyncJobHandle, timeout: float | None) -> bool: ...
    async def ask_status(self, handle: AsyncJobHandle) -> JobStatus: ...
    async def cancel(self, jobs: Iterable[Identified]) -> dict[str, list[str]]: ...
    def read_blob(self, ref: BlobRef) -> bytes: ...


class AsyncJobHandle(Handle, eq=False, gc=False):
    """A submitted job, within its client's event loop."""

    async def result(self, timeout: float | None = None) -> Any:
        """Waits up to `timeout` seconds for the job's result. Raises like `JobHandle.result`."""
        await self._wait(timeout)
        return self.value(self._client.read_blob)

    async def exception(self, timeout: float | None = None) -> EmpdError | None:
        """Waits like `result`; returns what it would raise, None for a completed job."""
        await self._wait(timeout)
        return self.failure()

    def done(self) -> bool:
        """True when the job has ended."""
        return self.ended

    async def accepted(self, timeout: float | None = None) -> bool:
        """Waits until the daemon has taken the job (from then on it is not lost) or refused it: False."""
        if not await self._client.wait_for(lambda: self.batch is None, timeout):
            raise ResultTimeout(f"job {self.id} was not acknowledged within {timeout} s")
        return self.state != "refused"

    async def cancel(self) -> bool:
        """Asks to stop the job; True when it had not ended. It is cancelled when `exception()` is JobCancelled."""
        return not self.ended and stopped_count(await self._client.cancel([self])) > 0

    async def status(self) -> JobStatus:
        """The job's present state."""
        return self.final_status() if self.ended else await self._client.ask_status(self)

    async def events(self, interval_s: float = EVENT_INTERVAL_S) -> AsyncIterator[JobStatus]:
        """The job's states as they change, the last one being its end. Short states may be missed."""
        last: JobStatus | None = None
        while True:
            status = await self.status()
            if status != last:
                yield status
                last = status
            if self.ended:
                return
            await self._client.settle(self, interval_s)

    @property
    def _client(self) -> AsyncOwner:
        client: AsyncOwner = self.owner
        return client

    async def _wait(self, timeout: float | None) -> None:
        if not self.ended and not await self._client.settle(self, timeout):
            raise ResultTimeout(f"job {self.id} did not end within {timeout} s; it goes on")


class AsyncJobSet:
    """Jobs that were submitted together, in the order of their payloads."""

    def __init__(self, client: AsyncOwner) -> None:
        self._client = client
        self._handles: list[AsyncJobHandle] = []
        self._ended: deque[AsyncJobHandle] = deque()

    def add(self, count: int) -> Sequence[Handle]:
        """New handles in this set."""
        client, end = self._client, self._ended.append
        handles = [AsyncJobHandle(0, client, on_end=end) for _ in range(count)]
        self._handles += handles
        return handles

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[AsyncJobHandle]:
        return iter(self._handles)

    def __getitem__(self, index: int) -> AsyncJobHandle:
        return self._handles[index]

    async def as_completed(self, timeout: float | None = None) -> AsyncIterator[AsyncJobHandle]:
        """The handles in the order in which their jobs end. Raises ResultTimeout after `timeout` seconds in all."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        ended = self._ended
        for taken in range(len(self._handles)):
            left = None if deadline is None else deadline - loop.time()
            if not ended and not await self._client.wait_for(lambda: ended, left):
                open_count = len(self._handles) - taken
                raise ResultTimeout(f"{open_count} of {len(self)} jobs did not end within {timeout} s; they go on")
            yield ended.popleft()
        # The next call starts again with all of them.
        ended.extend(self._handles)

    async def results(self, timeout: float | None = None) -> list[Any]:
        """All results, in order. Raises as the first failed job's `result` does, ResultTimeout after `timeout`."""
        handles = self._handles
        ended = 0

        def all_ended() -> bool:
            nonlocal ended
            while ended < len(handles) and handles[ended].ended:
                ended += 1
            return ended == len(handles)

        if not await self._client.wait_for(all_ended, timeout):
            raise ResultTimeout(f"not all of {len(self)} jobs ended within {timeout} s; they go on")
        return [handle.value(self._client.read_blob) for handle in handles]

    async def cancel(self) -> int:
        """Asks to stop all that have not ended; how many those were."""
        left = [handle for handle in self._handles if not handle.ended]
        return stopped_count(await self._client.cancel(left)) if left else 0
