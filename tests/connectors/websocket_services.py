"""WebSocket services for the tests: the peers on the library `websockets`, and connectors that speak with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from test_connectors_seam import Port
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from empd.connectors.base import Cancellable, Resumable, Site
from empd.connectors.context import Context, JobDetails, JobView
from empd.connectors.failures import ConnectorError, ServiceUnavailable
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.dialect import Answer, JobIds, Progress
from empd.connectors.protocol.websocket import WebSocketConnector
from empd.payload import encode_value

WAIT_S = 60.0
SOON = {"attempts_max": 8, "base_s": 0.02, "cap_s": 0.05}

Handler = Callable[["Peer", ServerConnection, dict[str, Any]], Awaitable[None]]


class Peer:
    """A service that keeps what it was sent, and answers each message by `handler`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.got: list[dict[str, Any]] = []
        self.connections: list[ServerConnection] = []
        self.requests: list[Any] = []
        self.server: Server

    async def __call__(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        with contextlib.suppress(ConnectionClosed):
            async for frame in connection:
                message = json.loads(frame)
                self.got.append(message)
                await self.handler(self, connection, message)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/jobs"

    def ids(self, kind: str) -> list[str]:
        """The ids in the messages of a type, in the order they came."""
        return [message["id"] for message in self.got if message["type"] == kind]


@contextlib.asynccontextmanager
async def peer(handler: Handler, port: int = 0, **options: Any) -> AsyncIterator[Peer]:
    """A running service."""
    made = Peer(handler)
    async with serve(made, "127.0.0.1", port, max_size=64 << 20, **options) as made.server:
        yield made


class Plain(WebSocketConnector):
    """Speaks `{"type": …, "id": …}`."""

    connector_id = "plain"

    def classify_message(self, message: Any) -> MessageType:
        return MessageType(message["type"])

    def extract_job_id(self, message: Any) -> str | None:
        return message.get("id")

    def extract_reference(self, message: Any) -> str | None:
        return message.get("reference")

    def extract_progress(self, message: Any) -> Progress | None:
        return Progress(message["fraction"])

    def extract_error(self, message: Any) -> ConnectorError:
        return ConnectorError(message["error"], retry=False)

    async def parse_job_result(self, message: Any, context: Context) -> Any:
        return message["result"]


class Cancelling(Plain, Cancellable):
    """Cancels too."""

    confirms_cancel = True

    def build_cancel_message(self, job_id: str) -> Any:
        return {"type": "cancel", "id": job_id}


class Resuming(Cancelling, Resumable):
    """Asks for jobs by `answers`."""

    answers: dict[str, Answer]
    asked: list[str]

    async def query_job(self, job_id: str, context: Context) -> Answer:
        self.asked.append(job_id)
        answer = self.answers.get(job_id) or self.answers.get("*")
        if answer is None:
            raise ServiceUnavailable("cannot be asked")
        return answer


class Referring(Plain, Resumable):
    """Its service gives jobs ids of its own, and names ours."""

    job_ids = JobIds.REFERENCE


class InTurn(Plain):
    """Its service gives jobs ids of its own, and names no other."""

    job_ids = JobIds.TURN


def context_of(payload: Any = None, job_id: int = 1, epoch: int = 9, checkpoint: bytes | None = None) -> Context:
    encoding, data = encode_value(payload)
    context = Context(Port(), JobView(job_id, epoch, 1, JobDetails(service="s", encoding=encoding), data), 10**9)
    context.last_checkpoint = checkpoint
    return context


async def run_job(connector: WebSocketConnector, context: Context) -> Any:
    """As a worker does."""
    job = context.job
    if context.last_checkpoint is not None and isinstance(connector, Resumable):
        return await connector.resume(job, context)
    return await connector.process(job, context)


@contextlib.asynccontextmanager
async def opened(kind: type[WebSocketConnector], url: str, healthy: bool = True, **config: Any) -> AsyncIterator[Any]:
    """A connector that is connected; nothing of it is left afterwards."""
    settings = {"url": url, "reconnect": SOON, **config}
    connector = kind(msgspec.convert(settings, kind.Config), Site(service="s"))
    if isinstance(connector, Resuming):
        connector.answers, connector.asked = {}, []
    assert await connector.start() is healthy, connector.reason
    try:
        yield connector
    finally:
        await connector.stop()
        left = [task for task in asyncio.all_tasks() if "empd" in repr(task.get_coro())]
        assert not left, left


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


async def send(connection: ServerConnection, **message: Any) -> None:
    await connection.send(json.dumps(message))


async def answers(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Progress, then twice the payload."""
    if message["type"] == "job":
        await send(connection, type="job_submit", id=message["id"])
        await send(connection, type="job_progress", id=message["id"], fraction=0.5)
        await send(connection, type="job_complete", id=message["id"], result=message["payload"] * 2)


async def takes(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Takes jobs and says nothing; confirms a cancel."""
    if message["type"] == "cancel":
        await send(connection, type="job_cancelled", id=message["id"])


async def breaks(server: Peer, connection: ServerConnection, message: dict[str, Any]) -> None:
    """Cuts the first connection as soon as it has the job, without a word."""
    if len(server.connections) == 1:
        connection.transport.abort()
    else:
        await answers(server, connection, message)


async def cancelled(connector: Any, context: Any, job: asyncio.Task[Any]) -> None:
    """As a worker does it."""
    context.mark_stopping("cancelled")
    await connector.cancel(context.job, context)
    with pytest.raises(ConnectorError):
        await job
