"""What is said over a WebSocket through a gate: each message is let through or changed, or the connection breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

Frame = str | bytes
Break = Literal["", "dropped", "half_closed", "silent"]


def unchanged(frame: Frame) -> Iterable[Frame]:
    """The message alone."""
    return (frame,)


@dataclass
class MessageFault:
    """What happens to the service's messages from now on.

    `change`: what the connector gets in place of each. `breaks`: in place of message number `after` (from 0) the
    connection breaks, once: `dropped` without a word; `half_closed`, this side ends and still reads; `silent`, it
    stays, and nothing comes or goes any more, pings and pongs included.
    """

    change: Callable[[Frame], Iterable[Frame]] = unchanged
    breaks: Break = ""
    after: int = 0
    seen: int = 0
    struck: int = 0

    def due(self) -> Break:
        """How the connection breaks now."""
        if not self.breaks or self.struck or self.seen <= self.after:
            return ""
        self.struck = 1
        return self.breaks


class Talk:
    """All connections of a gate. `told` are the service's messages; `note` is given the connector's."""

    def __init__(self, note: Callable[[Frame], None]) -> None:
        self.note = note
        self.told: list[Frame] = []
        self.fault: MessageFault | None = None

    async def carry(self, request: web.Request, outside: aiohttp.ClientWebSocketResponse) -> web.WebSocketResponse:
        """Carries one connection until either side ends it; `outside` is that to the service, without autoping."""
        protocols = (outside.protocol,) if outside.protocol else ()
        inside = web.WebSocketResponse(protocols=protocols, max_msg_size=0, autoping=False)
        await inside.prepare(request)
        line = _Line(self, request.transport, inside, outside)
        up, down = pumps = asyncio.ensure_future(line.up()), asyncio.ensure_future(line.down())
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            by_service = down.done() and not up.done()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        await line.end(by_service)
        return inside


class _Line:
    """One connection through the gate: `inside` to the connector, `outside` to the service."""

    def __init__(
        self,
        talk: Talk,
        transport: asyncio.BaseTransport | None,
        inside: web.WebSocketResponse,
        outside: aiohttp.ClientWebSocketResponse,
    ) -> None:
        self._talk = talk
        self._transport = transport
        self._inside = inside
        self._outside = outside
        self._silent = False

    async def up(self) -> None:
        """From the connector to the service."""
        async for message in self._inside:
            if not self._silent:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    self._talk.note(message.data)
                await _pass(message, self._outside)

    async def down(self) -> None:
        """From the service to the connector."""
        async for message in self._outside:
            if self._silent:
                continue
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                await _pass(message, self._inside)
                continue
            self._talk.told.append(message.data)
            fault = self._talk.fault
            if fault is None:
                await _pass(message, self._inside)
                continue
            fault.seen += 1
            match fault.due():
                case "dropped":
                    abort(self._transport)
                    return
                case "half_closed":
                    assert isinstance(self._transport, asyncio.WriteTransport)
                    self._transport.write_eof()
                    self._silent = True
                    continue
                case "silent":
                    self._silent = True
                    continue
            for frame in fault.change(message.data):
                fault.struck += fault.change is not unchanged
                await (self._inside.send_str(frame) if isinstance(frame, str) else self._inside.send_bytes(frame))

    async def end(self, by_service: bool) -> None:
        """Closes towards the connector as the service did: in good order, or without a word."""
        code = self._outside.close_code
        if by_service and code in (None, WSCloseCode.ABNORMAL_CLOSURE):
            abort(self._transport)
            return
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._inside.close(code=code or WSCloseCode.OK)


def abort(transport: asyncio.BaseTransport | None) -> None:
    """Breaks a connection, without a word."""
    if isinstance(transport, asyncio.Transport):
        transport.abort()
    elif transport is not None:
        transport.close()


async def _pass(message: Any, target: Any) -> None:
    match message.type:
        case WSMsgType.TEXT:
            await target.send_str(message.data)
        case WSMsgType.BINARY:
            await target.send_bytes(message.data)
        case WSMsgType.PING:
            await target.ping(message.data)
        case WSMsgType.PONG:
            await target.pong(message.data)
