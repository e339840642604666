"""One prompt of one attempt at a job: taken up from an earlier attempt or submitted, followed to its end, stopped.

    look for earlier ones ── listen ── submit, unless one was taken up ──▶ follow: hear, look, hear, …
                                                                            │
                     ended well, failed, interrupted, lost ◀────────────────┘

How it ended is read from the queue and the history alone. Messages say when to look, and how far it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError, InvalidInput, ProcessCrashed, ServiceUnavailable
from empd.connectors.protocol.retry import RetryConfig, delay_s, pause, time_left_s
from empd.connectors.service.comfyui.listener import Listener
from empd.connectors.service.comfyui.refusals import execution_failed, node_problems
from empd.connectors.service.comfyui.server import Entry, Place, Server, is_unreachable
from empd.connectors.service.comfyui.workflow import Graph
from empd.errors import FailureClass

STOP_POLL_S = 0.1
RETRY_S = 0.5

FOR_GOOD = ("cancelled", "timeout")
"""A job that stops for another reason is taken up by its next attempt, so its prompt goes on."""


class Order(NamedTuple):
    """What is to be run. The prompt's id is `stem`, which all attempts share, the epoch, `tail`."""

    stem: str
    tail: str
    graph: Graph
    extra_data: dict[str, Any]
    allow_partial: bool


class Pace(NamedTuple):
    """How often a prompt is looked for without cause, how long an unreachable server is waited for, and how often a
    submission is tried."""

    poll_interval_s: float
    outage_s_max: float
    retry: RetryConfig


class Prompt:
    """One prompt. `id` is known once `run` has begun; `adopted`: an earlier attempt had submitted it."""

    def __init__(self, server: Server, order: Order, pace: Pace, context: Context) -> None:
        self.id = f"{order.stem}{context.epoch:x}{order.tail}"
        self.server = server
        self.adopted = False
        self.over = False
        """The server knows how it ended, or does not know it any more."""
        self.node_errors: dict[str, Any] = {}
        self._order = order
        self._pace = pace
        self._context = context
        self._ran = False
        self._listener: Listener | None = None

    async def run(
        self, listen: Callable[[Server, str], Listener], earlier: str | None, intend: Callable[[str], Any]
    ) -> Entry:
        """From submission to its end. `earlier`: the prompt to take up; `intend(id)` is awaited before submitting.

        Raises a ConnectorError when it did not end well, by what the server says of it.
        """
        self.adopted = earlier is not None
        self.id = earlier or self.id
        async with listen(self.server, self.id) as self._listener:
            if not self.adopted:
                await intend(self.id)
                await self._submit()
            entry = await self._follow(self._listener)
        if entry.completed:
            return entry
        if entry.interrupted:
            raise ServiceUnavailable("someone else interrupted the prompt at ComfyUI")
        raise execution_failed(entry.error, self._order.graph)

    async def stop(self) -> None:
        """Has the prompt end at the server, if the job is over for good. It ends `run` when it has stopped there."""
        if self._context.stop_reason in FOR_GOOD:
            await self.server.stop(self.id)
        if self._listener is not None:
            self._listener.look.set()

    async def _submit(self) -> None:
        order, context = self._order, self._context
        body = {"prompt": order.graph, "prompt_id": self.id, "client_id": self.id, "extra_data": order.extra_data}
        if context.cancelled:
            raise _stopped()
        attempt = 1
        while True:
            try:
                self.node_errors = await self.server.submit(body, order.graph, context)
                break
            except ConnectorError as error:
                if not is_unreachable(error) or context.cancelled:
                    raise
                left_s = time_left_s(context)
                wait_s = delay_s(self._pace.retry, attempt, error.retry_after_s, left_s, random.random())
                if wait_s is None:
                    raise
            # Whether it has arrived all the same decides if it may be sent again.
            await pause(wait_s, context)
            if await self._arrived():
                break
            attempt += 1
        if self.node_errors and not order.allow_partial:
            await self.server.stop(self.id)
            raise InvalidInput(f"some outputs cannot be made: {node_problems(self.node_errors, order.graph)}")

    async def _arrived(self) -> bool:
        try:
            found = await self.server.find(self.id, self._context)
        except ConnectorError as error:
            if not is_unreachable(error):
                raise
            return False
        return found.place is not Place.UNKNOWN

    async def _follow(self, listener: Listener) -> Entry:
        context = self._context
        down_since_s: float | None = None
        while True:
            listener.look.clear()
            try:
                place, entry, ahead = await self.server.find(self.id, context)
                down_since_s = None
            except ConnectorError as error:
                now_s = context.clock()
                down_since_s = now_s if down_since_s is None else down_since_s
                if not is_unreachable(error) or context.cancelled or now_s - down_since_s > self._pace.outage_s_max:
                    raise
                await asyncio.sleep(RETRY_S)
                continue
            self.over = place in (Place.ENDED, Place.UNKNOWN)
            if entry is not None:
                await listener.heard_all()
                return entry
            self._ran = self._ran or listener.started or place is Place.RUNNING
            if place is Place.UNKNOWN:
                return self._lost(listener)
            if context.cancelled:
                await self._leave()
            elif place is Place.PENDING:
                context.progress(context.fraction, f"waits at ComfyUI, {ahead} before it")
            silent = not await self._wait(listener) and place is Place.RUNNING
            if silent and (self.adopted or listener.connections > 1):
                await listener.renew()

    async def _leave(self) -> None:
        """The job is to stop, and the prompt is still there."""
        if self._context.stop_reason not in FOR_GOOD:
            raise ServiceUnavailable("left at ComfyUI for the next attempt")
        # An interrupt is taken at a node's next step; one that came before the prompt ran is forgotten.
        await self.server.stop(self.id)

    def _lost(self, listener: Listener) -> Entry:
        """The server does not know the prompt any more."""
        if listener.succeeded:
            # Someone has cleared the history since.
            return Entry(True, False, listener.outputs, {}, [], 0.0)
        if self._context.cancelled:
            raise _stopped()
        if self._ran:
            # It may have been this prompt that ended the server: such losses are counted.
            raise ProcessCrashed("ComfyUI has lost the prompt while it ran: it was restarted, or its process died")
        raise ServiceUnavailable("ComfyUI has lost the prompt before it ran: it was restarted, or its queue cleared")

    async def _wait(self, listener: Listener) -> bool:
        """Until there is a reason to look; False when time alone is one."""
        limit_s = STOP_POLL_S if self._context.cancelled else self._pace.poll_interval_s
        try:
            async with asyncio.timeout(limit_s):
                return await listener.look.wait()
        except TimeoutError:
            return False


async def earlier_prompt(server: Server, stem: str, handle_id: str, context: Context) -> str | None:
    """The prompt of an earlier attempt that can be taken up: one that runs, waits, or has ended well.

    `handle_id`: the id that the last attempt has journaled. Others of this job are stopped.
    """
    queue = await server.queue(context)
    ours = [
        prompt_id
        for prompt_id in (*queue.running, *queue.pending)
        if prompt_id.startswith(stem) or prompt_id == handle_id
    ]
    for prompt_id in ours[1:]:
        await server.stop(prompt_id)
    if ours:
        return ours[0]
    entry = await server.history(handle_id, context) if handle_id else None
    return handle_id if entry is not None and entry.completed else None


def _stopped() -> ConnectorError:
    return ConnectorError("stopped at ComfyUI", failure=FailureClass.CANCELLED)
