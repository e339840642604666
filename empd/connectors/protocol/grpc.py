"""gRPC services on grpcio's asyncio: one channel, deadlines, gRPC's own retries and load balancing, verdicts.

A service of this kind names its methods by descriptors (`descriptors.Descriptors`) and calls `unary` or `stream`.
Cancelling the job's task cancels the call, and gRPC tells the server.

grpcio starts threads and must never be in a process that forks: this module is loaded in a worker, when a service of
that worker is configured, and by nothing else.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, Service, Site
from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError, InvalidInput, ServiceTimeout, ServiceUnavailable
from empd.connectors.protocol.auth import Credentials, secrets_of
from empd.connectors.protocol.calls import Calls, Rules
from empd.connectors.protocol.grpc_config import GRPCConfig, channel_options, pem_files, target_of
from empd.connectors.protocol.grpc_errors import GRPC, TOKEN_ENDED, verdict_of
from empd.connectors.protocol.identity import Identity
from empd.connectors.protocol.retry import asked_wait_s, time_left_s
from empd.connectors.protocol.verdicts import TEXT_CHARS_MAX, Trouble, VerdictTable
from empd.connectors.redaction import Redaction

# gRPC's core reads this once, when it is loaded; its notes on each lost connection would fill the worker's log.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

try:
    import grpc.aio
    from google.protobuf.message import Message

    from empd.connectors.protocol.descriptors import MethodType
except ImportError as error:
    raise ImportError(f"gRPC connectors need the extra `grpc` (pip install 'empd[grpc]'): {error}") from error

Take = Callable[[bytes], Any]
Requests = Iterable[Message] | AsyncIterator[Message]
Metadata = list[tuple[str, str]]


class GRPCConnector(Service):
    """Base of the services that speak gRPC. `verdicts` is the service's table; its rows have status codes by name."""

    service_type: ClassVar[str] = "grpc"
    protocol: ClassVar[str] = "grpc"
    Config: ClassVar[type[ConnectorConfig]] = GRPCConfig
    config: GRPCConfig
    verdicts: ClassVar[VerdictTable] = GRPC

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self.target = ""
        if self.config.addresses:
            target_of(self.config, "")
        self.calls = Calls(Rules(self.config.retry, self.config.rate_limit, self.config.circuit), site)
        auth = self.config.auth
        if getattr(auth, "query", ""):
            raise ConnectorError("auth: a gRPC call has no query", retry=False)
        self.redact = Redaction(site.learn)
        self.redact.learn([*site.secrets.values(), *secrets_of(auth)])
        self._identity = Identity(auth, self.redact.learn_passing)
        self._channel: grpc.aio.Channel | None = None

    async def open(self) -> None:
        """Makes the channel; it connects when it is used."""
        self.calls.forget_circuits()
        try:
            self.target = target_of(self.config, self.site.endpoint)
        except ValueError as error:
            raise ServiceUnavailable(str(error)) from None
        options = channel_options(self.config)
        tls = self.config.tls
        if tls is None:
            self._channel = grpc.aio.insecure_channel(self.target, options)
            return
        credentials = grpc.ssl_channel_credentials(*await asyncio.to_thread(pem_files, tls))
        self._channel = grpc.aio.secure_channel(self.target, credentials, options)

    async def close(self) -> None:
        """Ends the channel, and what is called on it."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        await self._identity.close()

    async def check_health(self) -> bool:
        """Whether there is a connection."""
        try:
            async with asyncio.timeout(self.config.connect_timeout_s):
                await self.channel.channel_ready()
        except TimeoutError:
            limit_s = self.config.connect_timeout_s
            raise ServiceUnavailable(f"no connection to {self.target} within {limit_s:g} s") from None
        return True

    @property
    def channel(self) -> grpc.aio.Channel:
        """The open channel. Raises ServiceUnavailable before `open` and after `close`."""
        if self._channel is None:
            raise ServiceUnavailable(f"service {self.site.service!r} is not open")
        return self._channel

    async def unary(self, method: MethodType, request: Message, context: Context | None = None) -> Any:
        """One message there, one back. Raises ConnectorError, by `verdicts`."""
        self._check_size(request)
        call = self.channel.unary_unary(method.path, type(request).SerializeToString, method.response.FromString)

        async def once(metadata: Metadata) -> Any:
            return await call(request, timeout=self._deadline_s(context), metadata=metadata)

        return await self._judged(method.path, once, context)

    async def stream(
        self,
        method: MethodType,
        requests: Iterable[Message] | AsyncIterator[Message],
        take: Take,
        context: Context | None = None,
    ) -> None:
        """Sends `requests`, and gives each answer (its bytes) to `take`, which may be a coroutine function.

        A method with one request takes the first. Raises ConnectorError; what `take` raises ends the call.
        """
        serialize = method.request.SerializeToString
        is_whole = not isinstance(requests, (Iterator, AsyncIterator))

        async def once(metadata: Metadata) -> None:
            nonlocal is_whole
            if method.client_streaming:
                open_stream = self.channel.stream_stream(method.path, serialize)
                call = open_stream(self._checked(requests), timeout=self._deadline_s(context), metadata=metadata)
            else:
                (request,) = [item async for item in self._checked(requests)]
                call = self.channel.unary_stream(method.path, serialize)(
                    request, timeout=self._deadline_s(context), metadata=metadata
                )
            try:
                async for answer in call:
                    is_whole = False
                    taken = take(answer)
                    if inspect.isawaitable(taken):
                        await taken
            finally:
                call.cancel()  # nothing, when the call is over

        await self._judged(method.path, once, context, may_repeat=lambda: is_whole)

    async def _judged(
        self,
        path: str,
        call: Callable[[Metadata], Any],
        context: Context | None,
        *,
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> Any:
        """The call with turn, circuit and verdict. Its retries are gRPC's own."""

        async def once() -> Any:
            try:
                return await self._shown(call, context, may_repeat)
            except grpc.aio.AioRpcError as error:
                # Not `from error`: its text holds the details as they came, which may repeat credentials.
                raise self._trouble(error.code().name, error.details(), error.trailing_metadata()) from None
            except asyncio.CancelledError:
                # grpcio says so too when it was the server that cancelled.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise self._trouble("CANCELLED", "the server ended the call", None) from None

        try:
            return await self.calls.once(path, once, context)
        except Trouble as trouble:
            raise trouble.error from trouble.__cause__

    async def _shown(
        self, call: Callable[[Metadata], Any], context: Context | None, may_repeat: Callable[[], bool]
    ) -> Any:
        """The call with credentials; once more where a token was not accepted and there is another."""
        shown = await self._identity.present()
        try:
            return await call(self._metadata_for(context, shown))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED or not self._identity.renewable:
                raise
            shown = await self._identity.renew(shown)
            if not may_repeat():
                raise Trouble(TOKEN_ENDED, TOKEN_ENDED.error()) from error
        return await call(self._metadata_for(context, shown))

    def _trouble(self, code: str, details: str | None, trailing: Any) -> Trouble:
        hints = {key: value for key, value in trailing or () if isinstance(value, str)}
        asked_s = asked_wait_s({"Retry-After": hints.get("retry-after", ""), **hints}, time.time())
        row = verdict_of(self.verdicts, code, asked_s)
        return Trouble(row, row.error(f"{code}: {self.redact(details or '')[:TEXT_CHARS_MAX]}", asked_s))

    def _deadline_s(self, context: Context | None) -> float:
        left_s = min(self.config.timeout_s, time_left_s(context))
        if left_s <= 0:
            raise ServiceTimeout("the job's deadline has passed")
        return left_s

    def _metadata_for(self, context: Context | None, shown: Credentials) -> Metadata:
        trace = context.trace if context is not None else ""
        named = {**self.config.metadata, **shown.headers, **({"traceparent": trace} if trace else {})}
        return [(name.lower(), value) for name, value in named.items()]

    def _check_size(self, request: Message) -> None:
        if request.ByteSize() > self.config.message_bytes_max:
            raise InvalidInput(f"the request has more than {self.config.message_bytes_max} bytes (message_bytes_max)")

    async def _checked(self, requests: Requests) -> AsyncIterator[Message]:
        if isinstance(requests, AsyncIterator):
            async for request in requests:
                self._check_size(request)
                yield request
            return
        for request in requests:
            self._check_size(request)
            yield request
