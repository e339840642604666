"""One WebSocket that is kept up: connects when wanted, notices a dead peer, connects again after a loss.

`link` says what follows from what; this is its I/O, on aiohttp. One task owns the socket; whoever wants to send waits
until it is open, or gets the reason why it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import aiohttp

from empd.connectors.failures import ConnectorError, ServiceUnavailable, describe
from empd.connectors.protocol.link import Link, LinkAction, LinkEvent, LinkState
from empd.connectors.protocol.retry import RetryConfig, delay_s

Frame = str | bytes

NORMAL_CLOSE = 1000
UNAUTHORIZED = 401
MOMENT_S = 0.001
CLOSE_S_MAX = 2.0
"""A peer that does not answer the closing handshake is left after this."""


class Handshake(NamedTuple):
    """What a connection is asked for with."""

    url: str
    headers: Mapping[str, str] = {}
    params: Mapping[str, str] = {}
    subprotocols: tuple[str, ...] = ()


class SocketOptions(NamedTuple):
    """How a socket is kept; times in seconds, `heartbeat_interval_s` 0 is none."""

    connect_timeout_s: float
    heartbeat_interval_s: float
    pong_timeout_s: float
    message_bytes_max: int
    reconnect: RetryConfig


class SocketOwner(Protocol):
    """Whom the socket works for. Nothing but `handshake`, `renew` and `greet` may raise."""

    async def handshake(self) -> Handshake:
        """Where to, and with which credentials."""

    async def renew(self) -> bool:
        """The credentials of the last handshake were not accepted: whether another would have others."""

    def refused(self, error: Exception) -> ConnectorError:
        """What a failed attempt to connect means."""

    async def greet(self, again: bool) -> None:
        """The connection is up, messages come in; `again` after a loss. Others may send when this returns."""

    def received(self, frame: Frame) -> None:
        """A message has come."""

    def heartbeat(self) -> Frame | None:
        """What asks the peer for a sign of life; None: a ping frame."""

    def lost(self, reason: str) -> None:
        """The connection is gone and will be tried again."""

    def given_up(self, error: ConnectorError) -> None:
        """The connection is gone, and nobody tries to get it back until it is wanted."""


class KeptSocket:
    """The connection. `reason` says why it is not open, `generation` counts how often it was."""

    def __init__(self, owner: SocketOwner, options: SocketOptions) -> None:
        self.reason = "not connected yet"
        self.generation = 0
        self._owner = owner
        self._options = options
        self._link = Link()
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._was_open = self._greeted = False
        self._heard_s = 0.0

    @property
    def state(self) -> LinkState:
        """Where the connection stands."""
        return self._link.state

    @property
    def usable(self) -> bool:
        """Whether something can be sent now."""
        return self._socket is not None and not self._socket.closed

    async def wanted(self) -> None:
        """Returns when the socket is open. Raises the ConnectorError of the attempt that did not succeed."""
        if self._opened is None or self._keeper is None or self._keeper.done():
            self._opened = self._promise()
            self._keeper = asyncio.create_task(self._keep())
        elif self._socket is not None and self._socket.closed:
            self._renew()
        await asyncio.shield(self._opened)

    async def send(self, frame: Frame) -> None:
        """Sends a message. Raises ServiceUnavailable when the socket is not open."""
        socket = self._socket
        if socket is None or socket.closed:
            raise ServiceUnavailable(f"no connection: {self.reason}")
        try:
            await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ServiceUnavailable(f"the connection broke while sending: {describe(error)}") from error

    async def drop(self, generation: int) -> None:
        """Ends the connection of this number, if it is still that; another follows as after a loss."""
        if self._socket is not None and generation == self.generation:
            self._renew()
            await self._socket.close()

    async def close(self) -> None:
        """Ends the connection for good."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))
        self._fail(ServiceUnavailable("the connector is closed"))
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- the task that owns the socket -------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """From the first attempt until the connection is given up."""
        error: ConnectorError = ServiceUnavailable("not connected")
        action = self._step(LinkEvent.WANTED)
        while action is not LinkAction.GIVE_UP:
            event = LinkEvent.WAITED
            if action is LinkAction.CONNECT:
                event, error = await self._connect(error)
            elif action is LinkAction.SERVE:
                event, error = await self._serve()
                if self._keeper is None:
                    # Before Python 3.13 a task group that ends by an error forgets a cancel that came meanwhile.
                    raise asyncio.CancelledError
            else:
                wait_s = delay_s(self._options.reconnect, self._link.attempt, None, math.inf, random.random())
                if wait_s is None:
                    event = LinkEvent.SPENT
                else:
                    await asyncio.sleep(wait_s)
            action = self._step(event)
            if action is LinkAction.WAIT:
                if event is LinkEvent.FAILED:
                    self._fail(error)
                self._owner.lost(self.reason)
        self._fail(error)
        self._owner.given_up(error)

    def _step(self, event: LinkEvent) -> LinkAction:
        self._link, action = self._link.step(event)
        return action

    async def _connect(self, error: ConnectorError) -> tuple[LinkEvent, ConnectorError]:
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                self._socket = await self._dial()
        except Exception as caught:  # DNS, TLS, HTTP, a connector's own code: whatever it is, there is no connection
            refused = caught if isinstance(caught, ConnectorError) else self._owner.refused(caught)
            self.reason = describe(refused)
            return LinkEvent.FAILED if refused.retry else LinkEvent.REFUSED, refused
        self.generation += 1
        return LinkEvent.OPENED, error

    async def _dial(self) -> aiohttp.ClientWebSocketResponse:
        """One handshake; another one where its credentials were not accepted and there are others."""
        try:
            return await self._ask(await self._owner.handshake())
        except aiohttp.WSServerHandshakeError as error:
            if error.status != UNAUTHORIZED or not await self._owner.renew():
                raise
        return await self._ask(await self._owner.handshake())

    async def _ask(self, handshake: Handshake) -> aiohttp.ClientWebSocketResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return await self._session.ws_connect(
            handshake.url,
            headers=handshake.headers,
            params=handshake.params,
            protocols=handshake.subprotocols,
            max_msg_size=self._options.message_bytes_max,
            autoping=False,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S_MAX),
        )

    async def _serve(self) -> tuple[LinkEvent, ConnectorError]:
        """Reads until the connection is over. Greets meanwhile, as the answer to a greeting has to be read too."""
        socket = self._socket
        assert socket is not None
        over = _Over(LinkEvent.LOST, ServiceUnavailable("the connection broke"))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(socket))
                group.create_task(self._beat(socket))
                group.create_task(self._greet())
        except* _Over as ended:
            over = _first(ended, over)
        finally:
            self._socket = None
            self.reason = over.error.message
            if self._greeted:
                self._renew()
            else:
                self._fail(over.error)
            await _closed(socket)
        return over.event, over.error

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Passes messages on; always ends with _Over."""
        clock = asyncio.get_running_loop().time
        while True:
            frame = await socket.receive()
            self._heard_s = clock()
            match frame.type:
                case aiohttp.WSMsgType.TEXT | aiohttp.WSMsgType.BINARY:
                    self._owner.received(frame.data)
                case aiohttp.WSMsgType.PING:
                    await socket.pong(frame.data)
                case aiohttp.WSMsgType.PONG:
                    pass
                case aiohttp.WSMsgType.CLOSE if frame.data == NORMAL_CLOSE:
                    raise _Over(LinkEvent.ENDED, ServiceUnavailable("the service closed the connection"))
                case aiohttp.WSMsgType.CLOSE:
                    raise _Over(LinkEvent.LOST, ServiceUnavailable(f"the service closed the connection ({frame.data})"))
                case aiohttp.WSMsgType.ERROR:
                    reason = f"the connection broke: {describe(frame.data)}"
                    raise _Over(LinkEvent.LOST, ServiceUnavailable(reason))
                case _:
                    raise _Over(LinkEvent.LOST, ServiceUnavailable("the connection broke"))

    async def _beat(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Asks the peer for a sign of life; whatever it sends is one. Ends with _Over when none comes."""
        options, clock = self._options, asyncio.get_running_loop().time
        wait_s = options.heartbeat_interval_s
        while wait_s > 0:
            await asyncio.sleep(wait_s)
            asked_s = clock()
            beat = self._owner.heartbeat()
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # the reader knows better what is wrong
                await (socket.ping() if beat is None else self.send(beat))
            await asyncio.sleep(options.pong_timeout_s)
            if self._heard_s < asked_s:
                reason = f"the service gave no sign of life for {options.pong_timeout_s:g} s"
                raise _Over(LinkEvent.LOST, ServiceUnavailable(reason))
            wait_s = max(options.heartbeat_interval_s - options.pong_timeout_s, MOMENT_S)

    async def _greet(self) -> None:
        again, self._was_open, self._greeted = self._was_open, True, False
        try:
            await self._owner.greet(again)
        except Exception as caught:  # a connector's own code: a greeting that fails is a connection that cannot be used
            error = caught if isinstance(caught, ConnectorError) else self._owner.refused(caught)
            raise _Over(LinkEvent.LOST if error.retry else LinkEvent.ENDED, error) from caught
        self.reason, self._greeted = "", True
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    # --- who waits ---------------------------------------------------------------------------------------------------

    def _promise(self) -> asyncio.Future[None]:
        """What those wait for who want the connection; nobody has to."""
        promise = asyncio.get_running_loop().create_future()
        promise.add_done_callback(lambda done: done.cancelled() or done.exception())
        return promise

    def _renew(self) -> None:
        """From now on others wait for the next connection; who waits already goes on waiting."""
        if self._opened is None or self._opened.done():
            self._opened = self._promise()

    def _fail(self, error: ConnectorError) -> None:
        """Tells those who wait that this attempt came to nothing."""
        opened, self._opened = self._opened, self._promise()
        if opened is not None and not opened.done():
            opened.set_exception(error)


class _Over(Exception):
    """A connection has come to its end."""

    def __init__(self, event: LinkEvent, error: ConnectorError) -> None:
        super().__init__(error.message)
        self.event = event
        self.error = error


def _first(group: BaseExceptionGroup[_Over], default: _Over) -> _Over:
    return next((error for error in group.exceptions if isinstance(error, _Over)), default)


async def _closed(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Says goodbye, and does not wait long for the answer."""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S_MAX):
            await socket.close()
