"""One call that blocks until the pictures are there: what is seen of it meanwhile, and how it is stopped.

The server works on one task at a time, behind a lock, and its `/interrupt` stops whatever runs. So a task has an id
of its own (`force_task_id`), and is interrupted only while the server says that it works on this very id, and not
when it is about to end: between the look and the interrupt a neighbour could have begun.
"""

from __future__ import annotations

import asyncio
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

Report = Callable[[float, str, int, int], None]


class Look(NamedTuple):
    """What is known of the server at one moment. `task`: the id it works on, empty when it does not say."""

    task: str
    working: bool
    fraction: float = 0.0
    eta_s: float = 0.0
    step: int = 0
    steps: int = 0
    interrupted: bool = False
    message: str = ""
    preview: str = ""

    def may_interrupt(self, task_id: str) -> bool:
        """Whether an interrupt now stops this task and can stop no other."""
        about_to_end = self.fraction > SETUP_FRACTION and self.eta_s < MARGIN_S
        return self.task == task_id and self.working and not about_to_end


class Server(Protocol):
    """What a task needs of its connector."""

    @property
    def poll_interval_s(self) -> float:
        """How often to look."""

    async def look(self, task_id: str, context: Context | None = None) -> Look:
        """The present state."""

    async def interrupt(self) -> None:
        """Stops what runs."""

    async def generate(self, route: str, body: dict[str, Any], context: Context) -> Any:
        """The blocking call."""


class Task:
    """One submission. Ids of all attempts at a job begin with `stem`. `interrupted`: by us."""

    def __init__(self, server: Server, stem: str, name: str, context: Context, report: Report) -> None:
        self.id = f"{stem}{name})"
        self.interrupted = False
        self._stem = stem
        self._server = server
        self._context = context
        self._report = report
        self._over = asyncio.Event()
        self._shown = self._evicted = self._stray = ""

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
                if look.may_interrupt(self.id) and not self._over.is_set():
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
        while True:
            await self._pause(self._server.poll_interval_s)
            try:
                look = await self._server.look(self.id, self._context)
                if look.task != self.id:
                    self._report(0.0, look.message or "queued", 0, 0)
                    await self._evict()
                    continue
            except ConnectorError:
                continue  # the call itself will tell what is wrong
            self._report(look.fraction, look.message or "running", look.step, look.steps)
            if look.preview and look.preview != self._shown:
                self._shown = look.preview
                self._context.partial({"kind": "preview", "image": look.preview})

    async def _evict(self) -> None:
        """Stops what an earlier attempt at this job has running, if that could not be seen before: nobody reads it.

        At its second look: see `earlier.py`.
        """
        look = await self._server.look(self.id)
        name = look.task
        stray = name.startswith(self._stem) and name not in (self.id, self._evicted) and look.may_interrupt(name)
        if stray and name == self._stray:
            self._evicted = name
            await self._server.interrupt()
        self._stray = name if stray else ""

    async def _check_whole(self) -> None:
        """An interrupted call answers 200, with half a picture."""
        look = await self._server.look(self.id)
        # The flag is of the last task that ran: ours, unless another has begun since.
        if look.interrupted and look.task in ("", self.id):
            raise ConnectorError("somebody else interrupted this at the server")
