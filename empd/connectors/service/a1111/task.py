"""One call that blocks until the pictures are there: what is seen of it meanwhile, and how it is stopped.

The server works on one task at a time, behind a lock, and its `/interrupt` stops whatever runs. So a task has an id
of its own (`force_task_id`), and is interrupted only while the server says that it works on this very id, and not
when it is about to end: between the look and the interrupt a neighbour could have begun.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError
from empd.connectors.service.a1111.request import PICTURES

MARGIN_S = 1.5
"""A task that the server expects to end sooner is left to end by itself."""

STOP_POLL_S = 0.2
SETUP_FRACTION = 0.01
"""What the server shows before the first step."""

INTERRUPTED = "somebody else interrupted this at the server"

Report = Callable[[float, str, int, int], None]


class Standing(enum.Enum):
    """Where a task is. UNKNOWN: it may have come and gone, be on its way, or not be seen from here."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Look(NamedTuple):
    """What is known of a task, and of its server, at one moment. `working`: the server, on whatever it is (`job`);
    `fraction` and what follows are of that; `eta_s` None: not known yet. `interrupted`: what runs, or ran last."""

    standing: Standing = Standing.UNKNOWN
    working: bool = False
    job: str = ""
    fraction: float = 0.0
    eta_s: float | None = None
    step: int = 0
    steps: int = 0
    interrupted: bool = False
    message: str = ""
    preview: str = ""
    preview_id: int = -1

    @property
    def runs(self) -> bool:
        """Whether the server works on the task that was asked about."""
        return self.standing is Standing.RUNNING

    @property
    def may_interrupt(self) -> bool:
        """Whether an interrupt now stops this task and can stop no other."""
        return self.runs and (self.eta_s is None or self.eta_s >= MARGIN_S)


class Server(Protocol):
    """What a task needs of its connector."""

    @property
    def poll_interval_s(self) -> float:
        """How often to look."""

    async def look(self, task_id: str, url: str = "", shown: int | None = None) -> Look:
        """The present state. `shown`: the preview that is known already; None: none is wanted."""

    async def interrupt(self, url: str = "") -> None:
        """Stops what runs."""

    async def generate(self, route: str, body: dict[str, Any], context: Context) -> Any:
        """The blocking call."""


class Task:
    """One submission. `stray`: the id of an earlier one for the same job that may still come. `interrupted`: by us."""

    def __init__(self, server: Server, task_id: str, stray: str, context: Context, report: Report) -> None:
        self.id = task_id
        self.interrupted = False
        self._stray = stray
        self._server = server
        self._context = context
        self._report = report
        self._over = asyncio.Event()
        self._stray_seen = self._hit = False

    async def execute(self, route: str, body: dict[str, Any]) -> Any:
        """The answer, with progress on the way. Raises ConnectorError, also when somebody else interrupted it."""
        watching = asyncio.create_task(self._watch())
        try:
            answer = await self._server.generate(route, {**body, "force_task_id": self.id}, self._context)
        finally:
            self.over()
            watching.cancel()
            await asyncio.wait((watching,))
        if route in PICTURES and not self.interrupted:
            await self._check_whole()
        return answer

    def over(self) -> None:
        """There is nothing to stop any more, or never was."""
        self._over.set()

    async def stop(self) -> None:
        """Returns when the task has ended: interrupted once that hits no other, or by itself."""
        while not self._over.is_set():
            if not self.interrupted:
                look = await self._server.look(self.id)
                if look.may_interrupt and not self._over.is_set():
                    self.interrupted = True
                    await self._server.interrupt()
            await self._pause(STOP_POLL_S)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return

    async def _watch(self) -> None:
        before = Look()
        while True:
            await self._pause(self._server.poll_interval_s)
            try:
                look = await self._server.look(self.id, shown=before.preview_id)
                if not look.runs:
                    self._report(0.0, look.message or "queued", 0, 0)
                    await self._evict()
                    continue
            except ConnectorError:
                continue  # the call itself will tell what is wrong
            # At its first look the flag may still be that of the task before it.
            self._hit = self._hit or (look.interrupted and before.runs)
            self._report(look.fraction, look.message or "running", look.step, look.steps)
            if look.preview and look.preview != before.preview:
                self._context.partial({"kind": "preview", "image": look.preview})
            before = look

    async def _evict(self) -> None:
        """Stops what an earlier attempt at this job has running, if that could not be seen before: nobody reads it.

        At its second look: see `earlier.py`.
        """
        if not self._stray:
            return
        look = await self._server.look(self._stray)
        if look.may_interrupt and self._stray_seen:
            self._stray = ""
            await self._server.interrupt()
        self._stray_seen = look.may_interrupt

    async def _check_whole(self) -> None:
        """An interrupted call answers 200, with half a picture."""
        look = await self._server.look(self.id)
        # The flag is of the last task that ran: ours, unless another has begun since and taken it away.
        if self._hit or (look.interrupted and not look.working):
            raise ConnectorError(INTERRUPTED)
