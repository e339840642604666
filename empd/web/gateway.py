"""What the web process asks of the broker, with time-outs, and without ever waiting for a broker to come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from empd.client.handle import Handle
from empd.errors import NotRunning
from empd.job import JobFilter
from empd.record import Record
from empd.result import JobStatus
from empd.web.line import Line
from empd.wire import frames
from empd.wire.frames import Reset, Rows

ASK_TIMEOUT_S = 3.0
ABSENT_TIMEOUT_S = 1.0
"""For questions while no broker is connected: history may know, and a restart is over sooner."""

SUBMIT_TIMEOUT_S = 30.0
STATUS_TIMEOUT_S = 1.0
STATUS_FRESH_S = 0.25
STATUS_RENEWED_S = STATUS_FRESH_S / 2
JOIN_TIMEOUT_S = 60.0
REPLAYS_MAX = 16
BLOBS_A_QUESTION = 10_000


class Gateway:
    """The broker, as handlers see it. Every method raises NotRunning when it does not answer in time."""

    def __init__(self, endpoint: str, curve_dir: Path | None = None) -> None:
        self._endpoint = endpoint
        self._curve_dir = curve_dir if endpoint.startswith("tcp://") else None
        self._line: Line | None = None
        self._loop = asyncio.get_running_loop()
        self._status: dict[str, Any] = {}
        self._status_at_s = float("-inf")
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self._replays = 0
        self._closed = False

    @property
    def connected(self) -> bool:
        """True while a broker has greeted this process."""
        return self._line is not None and self._line.ready

    @property
    def _patience_s(self) -> float:
        return ASK_TIMEOUT_S if self.connected else ABSENT_TIMEOUT_S

    def close(self) -> None:
        """Ends the conversation. Closing twice is fine."""
        self._closed = True
        if self._line is not None:
            self._line.close()

    async def status(self) -> dict[str, Any]:
        """The broker's picture, at most a quarter of a second old: many pages may ask at once.

        To one who asks again and again it is there at once: it is asked for anew before it is too old. A broker under
        full load answers after its pass, which takes its time.
        """
        age_s = self._loop.time() - self._status_at_s
        if age_s >= STATUS_FRESH_S:
            return await asyncio.shield(self._renewal())
        if age_s >= STATUS_RENEWED_S:
            self._renewal()
        return self._status

    def _renewal(self) -> asyncio.Task[dict[str, Any]]:
        """The question after the picture that is on its way, or a new one."""
        if self._asking is None or self._asking.done():
            self._asking = self._loop.create_task(self._ask_status())
            self._asking.add_done_callback(_noticed)
        return self._asking

    async def _ask_status(self) -> dict[str, Any]:
        body = await self._open().request(frames.Status, STATUS_TIMEOUT_S)
        if not isinstance(body, dict):
            raise NotRunning("the broker's status is not one")
        self._status, self._status_at_s = body, self._loop.time()
        return body

    async def blobs_in_use(self, blobs: Iterable[str]) -> tuple[set[str], dict[str, Any]]:
        """Those of the blobs that unfinished jobs refer to, and the picture that holds for the answer."""
        left = sorted(blobs)
        used: set[str] = set()
        while True:
            part, left = left[:BLOBS_A_QUESTION], left[BLOBS_A_QUESTION:]
            body = await self._ask(lambda number, part=part: frames.Status(number, part))  # type: ignore[misc]
            if not isinstance(body, dict) or not isinstance(body.get("blobs", []), list):
                raise NotRunning("the broker's status is not one")
            used.update(body.get("blobs", []))
            if not left:
                return used, body

    async def head_seq(self) -> int:
        """The journal's last row."""
        journal = (await self._ask_status()).get("journal")
        seq = journal.get("last_seq") if isinstance(journal, dict) else None
        return seq if isinstance(seq, int) else 0

    async def submit(self, jobs: Sequence[tuple[Any, Any, str]]) -> list[Handle]:
        """Submits (options, payload, key) each; returns when each is durable or refused (`handle.error`)."""
        return await self._open().submit(jobs, SUBMIT_TIMEOUT_S)

    def release(self, handles: Iterable[Handle]) -> None:
        """Nobody waits for these jobs here."""
        if self._line is not None and not self._line.broken:
            for handle in handles:
                self._line.release(handle)

    async def ended(self, handle: Handle, timeout_s: float) -> bool:
        """Waits for a submitted job's end; False after `timeout_s`."""
        return handle.ended or await self._open().ended(handle, timeout_s)

    async def look(self, ids: list[int]) -> tuple[list[Handle], list[JobStatus]]:
        """What the broker knows of jobs: handles of the ended, the state of the others (`unknown` among them)."""
        return await self._open().look(ids, self._patience_s)

    async def page(self, selected: JobFilter) -> tuple[list[Any], tuple[int, int] | None]:
        """One page of unfinished jobs, and the place (cursor, after) that the next one goes on behind."""
        body = await self._ask(lambda number: frames.List(number, selected))
        if not isinstance(body, dict) or not isinstance(body.get("jobs"), list):
            return [], None
        return body["jobs"], None if body.get("cursor") is None else (body["cursor"], body["after"])

    async def cancel(self, ids: list[int]) -> Any:
        """Asks to stop jobs."""
        return await self._ask(lambda number: frames.Cancel(number, ids))

    async def follow(
        self,
        consumer: str,
        from_seq: int,
        kinds: Iterable[int] = (),
        joined: Callable[[str], Awaitable[int]] | None = None,
    ) -> AsyncGenerator[Rows | Reset, None]:
        """Journal rows from `from_seq` on, over broker restarts, on a connection of its own. Taking the next frame
        acknowledges the one before. `joined(instance)` may first move the beginning, once it is known whose journal
        this is."""
        line = Line(self._endpoint, f"web {consumer}", self._curve_dir)
        try:
            if joined is not None:
                from_seq = await joined(await line.instance(JOIN_TIMEOUT_S))
            subscribe = frames.Subscribe(consumer, from_seq, kinds=list(kinds))
            async with contextlib.aclosing(line.follow(subscribe)) as rows:
                async for frame in rows:
                    yield frame
        finally:
            line.close()

    async def replay(self, from_seq: int) -> AsyncGenerator[Rows | Reset, None]:
        """Journal rows of every kind from `from_seq` on, for a reader that stops by itself. Their number is bounded."""
        if self._replays >= REPLAYS_MAX:
            raise NotRunning(f"{REPLAYS_MAX} event streams are being replayed; try again in a moment")
        self._replays += 1
        try:
            # Without a name: each connection has a subscription of its own, and none a cursor.
            async with contextlib.aclosing(self.follow("", from_seq)) as rows:
                async for frame in rows:
                    yield frame
        finally:
            self._replays -= 1

    async def _ask(self, make: Callable[[int], Record]) -> Any:
        return await self._open().request(make, self._patience_s)

    def _open(self) -> Line:
        if self._closed:
            raise NotRunning("the web process is going")
        if self._line is None or self._line.broken:
            if self._line is not None:
                self._line.close()
            self._line = Line(self._endpoint, "web", self._curve_dir)
        return self._line


def _noticed(asking: asyncio.Task[dict[str, Any]]) -> None:
    """A question may end badly when nobody waits for its answer any more."""
    if not asking.cancelled():
        asking.exception()
