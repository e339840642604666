"""What a synchronous client hands out for its jobs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from empd.client.handle import Handle
from empd.client.options import Identified
from empd.errors import EmpdError, ResultTimeout
from empd.payload import BlobRef
from empd.result import JobStatus

EVENT_INTERVAL_S = 0.05


def deadline_after(timeout: float | None) -> int | None:
    """The monotonic time `timeout` seconds from now; None for ever."""
    return None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)


def stopped_count(answer: dict[str, list[str]]) -> int:
    """How many jobs a cancel applied to."""
    return len(answer["cancelled"]) + len(answer["cancelling"])


class Owner(Protocol):
    """What handles need of their client."""

    def poll(self) -> None: ...
    def wait_for(self, done: Callable[[], object], deadline_ns: int | None) -> bool: ...
    def settle(self, handle: JobHandle, deadline_ns: int | None) -> bool: ...
    def ask_status(self, handle: JobHandle) -> JobStatus: ...
    def cancel(self, jobs: Iterable[Identified]) -> dict[str, list[str]]: ...
    def read_blob(self, ref: BlobRef) -> bytes: ...


class JobHandle(Handle, eq=False, gc=False):
    """A submitted job. Handles may be waited for from any thread."""

    def result(self, timeout: float | None = None) -> Any:
        """Waits up to `timeout` seconds for the job's result.

        Raises ResultTimeout (the job goes on), JobFailed or its subclasses, Refused when the job was not accepted,
        BlobMissing when a large result is past its retention.
        """
        self._wait(timeout)
        return self.value(self._client.read_blob)

    def exception(self, timeout: float | None = None) -> EmpdError | None:
        """Waits like `result`; returns what it would raise, None for a completed job."""
        self._wait(timeout)
        return self.failure()

    def done(self) -> bool:
        """True when the job has ended. Does not wait."""
        if not self.ended:
            self._client.poll()
        return self.ended

    def accepted(self, timeout: float | None = None) -> bool:
        """Waits until the daemon has taken the job (from then on it is not lost) or refused it: False."""
        if self.batch is not None and not self._client.wait_for(lambda: self.batch is None, deadline_after(timeout)):
            raise ResultTimeout(f"job {self.id} was not acknowledged within {timeout} s")
        return self.state != "refused"

    def cancel(self) -> bool:
        """Asks to stop the job; True when it had not ended. It is cancelled when `exception()` is JobCancelled."""
        return not self.ended and stopped_count(self._client.cancel([self])) > 0

    def status(self) -> JobStatus:
        """The job's present state."""
        return self.final_status() if self.ended else self._client.ask_status(self)

    def events(self, interval_s: float = EVENT_INTERVAL_S) -> Iterator[JobStatus]:
        """The job's states as they change, the last one being its end. Short states may be missed."""
        last: JobStatus | None = None
        while True:
            status = self.status()
            if status != last:
                yield status
                last = status
            if self.ended:
                return
            self._client.settle(self, deadline_after(interval_s))

    @property
    def _client(self) -> Owner:
        client: Owner = self.owner
        return client

    def _wait(self, timeout: float | None) -> None:
        if not self.ended and not self._client.settle(self, deadline_after(timeout)):
            raise ResultTimeout(f"job {self.id} did not end within {timeout} s; it goes on")


class JobSet:
    """Jobs that were submitted together, in the order of their payloads."""

    def __init__(self, client: Owner) -> None:
        self._client = client
        self._handles: list[JobHandle] = []
        self._ended: deque[JobHandle] = deque()

    def add(self, count: int) -> Sequence[Handle]:
        """New handles in this set."""
        client, end = self._client, self._ended.append
        handles = [JobHandle(0, client, on_end=end) for _ in range(count)]
        self._handles += handles
        return handles

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[JobHandle]:
        return iter(self._handles)

    def __getitem__(self, index: int) -> JobHandle:
        return self._handles[index]

    def as_completed(self, timeout: float | None = None) -> Iterator[JobHandle]:
        """The handles in the order in which their jobs end. Raises ResultTimeout after `timeout` seconds in all."""
        deadline_ns = deadline_after(timeout)
        ended = self._ended
        for taken in range(len(self._handles)):
            if not ended and not self._client.wait_for(lambda: ended, deadline_ns):
                open_count = len(self._handles) - taken
                raise ResultTimeout(f"{open_count} of {len(self)} jobs did not end within {timeout} s; they go on")
            yield ended.popleft()
        # The next call starts again with all of them.
        ended.extend(self._handles)

    def results(self, timeout: float | None = None) -> list[Any]:
        """All results, in order. Raises as the first failed job's `result` does, ResultTimeout after `timeout`."""
        deadline_ns = deadline_after(timeout)
        values = []
        for handle in self._handles:
            if not handle.ended and not self._client.settle(handle, deadline_ns):
                raise ResultTimeout(f"not all of {len(self)} jobs ended within {timeout} s; they go on")
            values.append(handle.value(self._client.read_blob))
        return values

    def cancel(self) -> int:
        """Asks to stop all that have not ended; how many those were."""
        left = [handle for handle in self._handles if not handle.ended]
        return stopped_count(self._client.cancel(left)) if left else 0
