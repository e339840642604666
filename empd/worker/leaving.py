"""How a worker ends while it is well: drained, recycled, or told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable

from empd.connectors.failures import ConnectorError
from empd.lifecycle import Child, ChildKind, Control, Notice, send
from empd.worker.lanes import Lanes
from empd.worker.outbox import Outbox

POLL_S = 0.01
CATCH_UP_S_MAX = 5.0
SETTLE_S_MAX = 5.0
STOP_SHARE = 0.5
"""The part of `term_grace_s` that jobs have to stop, so that a stopped worker ends before it is killed."""


class Way(enum.StrEnum):
    """Why a worker takes nothing new; the text is the reason that its offers show."""

    STAYS = ""
    DRAINING = "draining"
    RECYCLING = "recycling"
    STOPPING = "stopping"


class Leaving:
    """Takes nothing, lets work end, waits until it is settled, then calls `on_left`.

    `on_change()` is called when what may be taken has changed; `caught_up()` returns when the broker has read it, and
    all that it had sent before has come.
    """

    def __init__(
        self,
        child: Child,
        lanes: Lanes,
        outbox: Outbox,
        on_change: Callable[[], None],
        caught_up: Callable[[], Awaitable[object]],
        on_left: Callable[[], None],
    ) -> None:
        self._child = child
        self._lanes = lanes
        self._outbox = outbox
        self._on_change = on_change
        self._caught_up = caught_up
        self._on_left = on_left
        self._stop_s = child.settings.term_grace_s * STOP_SHARE
        self._task: asyncio.Task[None] | None = None
        self.way = Way.STAYS

    def drain(self, limit_s: float) -> None:
        """Running jobs may end; those that still run after `limit_s` (0: no limit) are stopped."""
        if self.way in (Way.STAYS, Way.RECYCLING):
            self._begin(Way.DRAINING, limit_s)

    def recycle(self) -> None:
        """Asks the supervisor for a successor; running jobs may end."""
        if self.way is Way.STAYS:
            self._say(Notice.RECYCLE)
            self._begin(Way.RECYCLING, 0.0)

    def stop(self) -> None:
        """Running jobs are stopped and given back uncharged."""
        if self.way is not Way.STOPPING:
            self._begin(Way.STOPPING, self._stop_s)

    def resume(self) -> None:
        """Work is taken again, if this was a drain that is not over."""
        if self.way is Way.DRAINING:
            self.close()
            self.way = Way.STAYS
            self._on_change()

    def close(self) -> None:
        """Gives up whatever was under way."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _begin(self, way: Way, limit_s: float) -> None:
        self.close()
        self.way = way
        self._on_change()
        self._task = asyncio.create_task(self._leave(limit_s))

    async def _leave(self, limit_s: float) -> None:
        if self.way is Way.STOPPING:
            self._lanes.stop_all("drain")
        else:
            # What is assigned meanwhile is not known to be refused: a worker that left now would leave it behind.
            with contextlib.suppress(TimeoutError, ConnectorError):
                async with asyncio.timeout(CATCH_UP_S_MAX):
                    await self._caught_up()
        idle = await self._within(limit_s, lambda: not self._lanes.busy)
        if not idle and self.way is not Way.STOPPING:
            self._lanes.stop_all("drain")
            await self._within(self._stop_s, lambda: not self._lanes.busy)
        self._outbox.flush()
        settle_s = min(SETTLE_S_MAX, self._stop_s / 4) if self.way is Way.STOPPING else SETTLE_S_MAX
        await self._within(settle_s, lambda: self._outbox.empty)
        if self.way is Way.DRAINING and not self._lanes.busy:
            self._say(Notice.DRAINED)
        self._on_left()

    async def _within(self, limit_s: float, condition: Callable[[], bool]) -> bool:
        """Waits for the condition, at most that long (0: for ever); its last value."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + limit_s if limit_s > 0 else float("inf")
        while not condition() and loop.time() < end_s:
            await asyncio.sleep(POLL_S)
        return condition()

    def _say(self, notice: Notice) -> None:
        send(self._child.control, Control(notice, ChildKind.WORKER, self._child.slot))
