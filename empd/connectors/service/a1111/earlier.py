"""What an earlier call for the same job may have left at the server, whose answer nobody reads any more.

The server takes an id for a task (`force_task_id`), but works on the same id twice, keeps no result and takes nothing
out of its queue. So nothing can be taken up: a call that is still there is waited for, and stopped once it runs, before
the job is sent again. What cannot be known is a doubt, which the job shows.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError
from empd.connectors.service.a1111.task import STOP_POLL_S, Look, Report, Standing
from empd.connectors.upstream import UpstreamHandle
from empd.errors import FailureClass

KIND = "a1111"

_SILENT = (FailureClass.UNAVAILABLE, FailureClass.TIMEOUT)
_FOR_GOOD = ("cancelled", "timeout")

IDLE_LOOKS = 25
"""So often the server is seen to do nothing before a task in its queue counts as one that never begins."""


class Server(Protocol):
    """What is needed of a connector."""

    @property
    def base_url(self) -> str:
        """The worker's own server."""

    async def look(self, task_id: str, url: str = "", shown: int | None = None) -> Look:
        """Where the task is at the server at `url`."""

    async def interrupt(self, url: str = "") -> None:
        """Stops what runs there."""


def tells_the_end(error: ConnectorError) -> bool:
    """Whether a failed call says that the task is over. A lost connection does not, nor does a proxy."""
    return error.failure not in _SILENT


async def settle(server: Server, context: Context, report: Report) -> None:
    """Returns when the last call for this job is over, as far as it can be known. Raises ConnectorError."""
    handle = context.upstream.handle
    if handle is None or handle.ended:
        return
    if await _Earlier(server, handle, context, report).end():
        await context.upstream.ended()


class _Earlier:
    """One call that may still be there."""

    def __init__(self, server: Server, handle: UpstreamHandle, context: Context, report: Report) -> None:
        self._server = server
        self._handle = handle
        self._context = context
        self._report = report
        self._url = str(handle.extra.get("url") or server.base_url)
        self._seen_running = False
        self._stopped = False

    async def end(self) -> bool:
        """Waits for its end, and brings it about. False: nothing is known of it."""
        arrived, idle = False, 0
        while True:
            look = await self._look()
            if look.standing is Standing.ENDED or (arrived and look.standing is Standing.UNKNOWN):
                self._say("was interrupted" if self._stopped else "has come to its end, unread")
                return True
            # A call that fails before it begins (a picture that cannot be read) stays in the server's queue for ever.
            idle = idle + 1 if look.standing is Standing.QUEUED and not look.working else 0
            if look.standing is Standing.UNKNOWN or idle == IDLE_LOOKS:
                return False
            arrived = True
            context = self._context
            if context.cancelled and context.stop_reason not in _FOR_GOOD:
                raise ConnectorError("an earlier call is still there", failure=FailureClass.CANCELLED)
            self._report(0.0, f"an earlier call for this job is {look.standing.value}", 0, 0)
            await self._stop(look)
            await asyncio.sleep(STOP_POLL_S)

    async def _look(self) -> Look:
        try:
            return await self._server.look(self._handle.id, self._url)
        except ConnectorError as error:
            if self._url == self._server.base_url or tells_the_end(error):
                raise
        return Look(Standing.UNKNOWN)  # another GPU's server, which is not there any more

    async def _stop(self, look: Look) -> None:
        """Interrupts it once, when that can hit no other.

        A task that failed stays the current one until the next has begun, and for a moment of that beginning looks as
        if it ran; so it has to be seen at two looks.
        """
        if look.may_interrupt and self._seen_running and not self._stopped:
            self._stopped = True
            await self._server.interrupt(self._url)
        self._seen_running = look.may_interrupt

    def _say(self, end: str) -> None:
        epoch = self._handle.submitted_epoch
        self._context.log(
            f"an earlier submission to {KIND} (epoch {epoch}) had arrived and {end}; this attempt sends it again"
        )
