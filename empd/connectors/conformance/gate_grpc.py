"""The gate for gRPC: any method of any service, its messages as bytes; faults by status code, and within a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
import grpc.aio

from empd.connectors.conformance.gate import Fault, Gate, Recorded

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
"""The code for a fault's status (https://cloud.google.com/apis/design/errors#handling_errors)."""

_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
_OF_TRANSPORT = ("user-agent", "grpc-", ":")


class GRPCGate(Gate):
    """Each call is a request: `CALL` and the method's path, its first message the body."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._server: Any = None
        self._stopping: asyncio.Future[None] | None = None
        self._port = 0

    async def start(self) -> Self:
        """Listens on a free port of loopback."""
        self._channel = grpc.aio.insecure_channel(urlsplit(self.upstream).netloc, _OPTIONS)
        await self._listen()
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def _listen(self) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers([_AnyMethod(self)])
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    def break_all(self) -> None:
        """See Gate.break_all."""
        if not self.down:
            super().break_all()
            self._stopping = asyncio.ensure_future(self._server.stop(0))

    async def mend(self) -> None:
        """See Gate.mend."""
        if self._stopping is not None:
            await self._stopping
            self._stopping = None
        await super().mend()
        await self._listen()

    async def close(self) -> None:
        """See Gate.close."""
        self.break_all()
        if self._stopping is not None:
            await self._stopping
        await self._channel.close()

    async def call(self, method: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One call through the gate."""
        metadata = [(key, value) for key, value in context.invocation_metadata() if not key.startswith(_OF_TRANSPORT)]
        body = await anext(aiter(requests), b"")
        recorded = Recorded("CALL", method, dict(metadata), body)
        self.requests.append(recorded)
        try:
            async for answer in self._answers(recorded, requests, context, metadata):
                yield answer
            recorded.ended, recorded.status = "answered", 200
        except (asyncio.CancelledError, GeneratorExit):
            if recorded.ended == "open":
                recorded.ended = "hung_up"
            raise

    async def _answers(
        self, recorded: Recorded, requests: AsyncIterator[bytes], context: Any, metadata: list[tuple[str, Any]]
    ) -> AsyncIterator[bytes]:
        fault = self.strikes(recorded)
        if fault is not None and fault.held is not None:
            await fault.held.wait()
        if fault is not None and (fault.status or fault.code):
            recorded.status = fault.status
            if fault.status == 200:
                yield fault.body
                return
            await _refuse(fault, recorded, context)
        recorded.reached = True
        call = self._channel.stream_stream(recorded.path)(_all(recorded.body, requests), metadata=metadata)
        try:
            if fault is None or not (fault.cut or fault.lost or fault.stalled):
                async for answer in call:
                    yield answer
                return
            whole = [answer async for answer in call]
            for answer in whole[: 0 if fault.lost else len(whole) // 2]:
                yield answer
            if fault.stalled:
                await asyncio.Event().wait()
        except grpc.aio.AioRpcError as error:
            recorded.ended, recorded.status = "answered", 500
            await context.abort(error.code(), error.details() or "", error.trailing_metadata() or ())
        finally:
            call.cancel()
        recorded.ended = "broken"
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, gate: GRPCGate) -> None:
        self._gate = gate

    def service(self, details: Any) -> Any:
        """See GenericRpcHandler.service."""

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            answers = self._gate.call(details.method, requests, context)
            async with contextlib.aclosing(answers):  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(handle)


async def _all(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for request in rest:
        yield request


async def _refuse(fault: Fault, recorded: Recorded, context: Any) -> None:
    code = grpc.StatusCode[fault.code or CODES[fault.status]]
    details = f"not good: {recorded.headers}" if fault.tells else "a fault that the conformance kit injected"
    recorded.ended = "answered"
    await context.abort(code, details, tuple((name.lower(), value) for name, value in fault.headers.items()))
