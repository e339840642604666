"""Removes blobs that nothing refers to: put by a sender that died before it named them, or answered and forgotten.

A blob is in use when an unfinished job's payload names it (the broker knows), a kept result does (history knows), or
a result in a journal row that history has not read yet. One that is younger than an hour may be about to be named.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from empd import clock
from empd.errors import EmpdError, NotRunning
from empd.memory.arena import Arena
from empd.payload import BlobRef
from empd.queue.rows import Kind, decode_body
from empd.result import FinishedJob
from empd.store.history import History
from empd.web.archive import Archive
from empd.web.duty import Duty
from empd.web.gateway import Gateway
from empd.wire.frames import Reset

EVERY_S = 3600.0
SETTLE_S = 60.0
"""After a broker's start workers first say again what they have finished, and may have finished long ago."""

UNUSED_AFTER_S = 3600.0
TAKES_S_MAX = 600.0
ROWS_AT_ONCE = 5_000
UNREAD_ROWS_MAX = 200_000


class Leftovers(Duty):
    """A background duty of the web process. `removed` counts."""

    name = "leftovers"

    def __init__(self, gateway: Gateway, archive: Archive, arena: Arena, settle_s: float = SETTLE_S) -> None:
        super().__init__()
        self._gateway = gateway
        self._archive = archive
        self._arena = arena
        self._settle_s = settle_s
        self.removed = 0

    async def _run(self) -> None:
        while True:
            wait_s = EVERY_S
            try:
                if await self._settled():
                    self.removed += await self.sweep()
                else:
                    wait_s = 0.0
            except (EmpdError, OSError):
                # Nothing was removed; the broker is away, history is being rebuilt, or the disk is in trouble.
                wait_s = SETTLE_S
            await asyncio.sleep(wait_s)

    async def _settled(self) -> bool:
        """True when one broker has served for a while."""
        _, before = await self._gateway.blobs_in_use(())
        await asyncio.sleep(self._settle_s)
        _, after = await self._gateway.blobs_in_use(())
        return (before.get("boot"), before.get("instance")) == (after.get("boot"), after.get("instance"))

    async def sweep(self) -> int:
        """Removes what is unused; returns how many files. Raises NotRunning when it cannot be known what is used."""
        begun_ns = clock.now().mono_ns
        aged = await asyncio.to_thread(self._arena.aged, UNUSED_AFTER_S)
        used, picture = await self._gateway.blobs_in_use(aged)
        if aged - used:
            used |= await self._unread(picture["journal"]["last_seq"])
            used |= await self._in_history()
        # Everything old enough for this was in the listing.
        if clock.now().mono_ns - begun_ns > TAKES_S_MAX * clock.NS_PER_S:
            raise NotRunning("the questions took too long")
        return await asyncio.to_thread(self._arena.sweep, used, UNUSED_AFTER_S + TAKES_S_MAX)

    async def _in_history(self) -> set[str]:
        used: set[str] = set()
        position: int | None = 0
        while position is not None:
            found, position = await self._archive.call(partial(_result_blobs, after=position))
            used |= found
        return used

    async def _unread(self, head_seq: int) -> set[str]:
        """Blobs of results in rows that history has not read."""
        ended = await unread_ends(self._gateway, self._archive.through_seq, head_seq)
        return {job.result.id for job in ended if isinstance(job.result, BlobRef)}


async def unread_ends(gateway: Gateway, after_seq: int, head_seq: int) -> list[FinishedJob]:
    """Jobs that ended in the journal's rows after `after_seq`, up to `head_seq`. Raises NotRunning where rows lack."""
    ended: list[FinishedJob] = []
    if after_seq >= head_seq:
        return ended
    if head_seq - after_seq > UNREAD_ROWS_MAX:
        raise NotRunning("history is too far behind")
    async with contextlib.aclosing(gateway.replay(after_seq + 1)) as frames:
        async for frame in frames:
            if isinstance(frame, Reset):
                raise NotRunning("rows were trimmed before history read them")
            for seq, _, kind, _, body in frame.rows:
                if kind == Kind.RESULTS:
                    ended += [job for group in decode_body(kind, body).groups for job in group.jobs]
                if seq >= head_seq:
                    return ended
    raise NotRunning("the journal's rows ended early")


def _result_blobs(history: History, after: int) -> tuple[set[str], int | None]:
    return history.result_blobs(after, ROWS_AT_ONCE)
