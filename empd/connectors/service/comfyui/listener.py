"""The WebSocket of one prompt: what it says of the prompt's progress, for as long as the connection lasts.

The socket tells what is new; it is never the truth about how a prompt ended (a message may be missed, and a server
that restarts forgets). Each prompt has a client id of its own, the prompt's id, so that no neighbour's messages come,
and a later attempt can listen to a prompt that an earlier one has submitted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import aiohttp

from empd.connectors.failures import ConnectorError
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.service.comfyui.messages import FEATURES, Message, NodeText, Picture, read
from empd.connectors.service.comfyui.refusals import BLOCKED

HEARTBEAT_S = 20.0
RECONNECT_S = (0.1, 0.5, 2.0)
"""Before the second connection, the third, and each one after."""

HEARD_S_MAX = 5.0
"""A prompt is submitted unheard when the server says nothing for this long, or refuses every early attempt."""

MESSAGE_BYTES_MAX = 256 << 20
"""`SaveImageWebsocket` sends whole images."""

CANCEL_AGAIN_S = 1.0
END_S_MAX = 2.0
"""The last messages of a prompt that has ended come within this, where they come at all."""

RENEWALS_MAX = 3

_ENDS = ("execution_success", "execution_error", "execution_interrupted")

Heard = Message | Picture | NodeText


class Listener:
    """Hears one prompt: `async with` it before the prompt is submitted.

    `on_heard(message)` is called for each message about the prompt. `look` is set when the prompt should be looked for:
    it may have ended, or something may have been missed.
    """

    def __init__(self, http: HTTPConnector, url: str, prompt_id: str, on_heard: Callable[[Heard], None]) -> None:
        self.look = asyncio.Event()
        self.succeeded = False
        self.started = False
        self._ended = asyncio.Event()
        self.connections = 0
        self._quiet = False
        self._renewals = 0
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self.outputs: dict[str, Any] = {}
        self._http = http
        self._url = f"{url}/ws"
        self._prompt_id = prompt_id
        self._on_heard = on_heard
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Listener:
        self._task = asyncio.create_task(self._listen())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARD_S_MAX):
                await self._connected.wait()
        return self

    async def __aexit__(self, *error: object) -> None:
        task = self._task
        while task is not None and not task.done():
            # Again and again: a library may take a cancel for the end of a connection, and the next one is dialled.
            task.cancel()
            await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)

    async def heard_all(self) -> None:
        """The prompt has ended: returns when its last message is there, if this connection has told of it at all."""
        if self.started and self._socket is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S_MAX):
                    await self._ended.wait()

    async def renew(self) -> None:
        """A prompt runs. When nothing was heard of it since the last call, the server may have taken the close of an
        earlier connection of this client for that of this one: closes it, and another follows."""
        quiet, self._quiet = self._quiet, True
        if quiet and self._socket is not None and self._renewals < RENEWALS_MAX:
            self._renewals += 1
            await self._socket.close()

    async def _listen(self) -> None:
        """Until it is cancelled. Without a connection the prompt is still looked for; only its progress is not seen."""
        config = self._http.config
        failures = 0
        while True:
            try:
                shown = await self._http.session.identity.present()
                async with self._http.session.aiohttp.ws_connect(
                    self._url,
                    params={"clientId": self._prompt_id, **shown.query},
                    headers={**config.headers, **shown.headers},
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MESSAGE_BYTES_MAX,
                    proxy=config.proxy or None,
                ) as socket:
                    self._socket = socket
                    self.connections += 1
                    await socket.send_str(FEATURES)
                    await self._hear(socket)
            except (aiohttp.ClientError, OSError, TimeoutError, ConnectorError):
                pass  # whether the prompt is lost with the connection, the queue will say
            self._socket = None
            self._ended.set()
            self.look.set()
            failures += 1
            if failures >= len(RECONNECT_S):
                self._connected.set()
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S)) - 1])

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in socket:
            if frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                # The first message is the server's: from now on it knows this client.
                self._connected.set()
                message = read(frame.data)
                if message is not None and self._is_ours(message):
                    self._quiet = self._quiet and isinstance(message, Message) and message.kind == "status"
                    if isinstance(message, Message):
                        self._note(message)
                    self._on_heard(message)

    def _is_ours(self, message: Heard) -> bool:
        """Prompts without a client are told to everyone."""
        return isinstance(message, NodeText) or message.prompt_id in ("", self._prompt_id)

    def _note(self, message: Message) -> None:
        kind, data = message.kind, message.data
        if kind in ("execution_start", "executing", "progress_state"):
            self.started = self.started or message.prompt_id == self._prompt_id
        if kind == "executed" and isinstance(data.get("output"), dict):
            self.outputs[str(data.get("node"))] = data["output"]
        elif kind == "execution_success":
            self.succeeded = True
        if (kind in _ENDS and data.get("exception_type") != BLOCKED) or (
            kind == "executing" and data.get("node") is None and message.prompt_id == self._prompt_id
        ):
            self.look.set()
        if kind == "executing" and data.get("node") is None and message.prompt_id == self._prompt_id:
            self._ended.set()
