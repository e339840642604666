"""A service on one WebSocket: its configuration, its connection, and each message's way to the job it is about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, ClassVar

import aiohttp
import msgspec

from empd.connectors.base import ConnectorConfig, EndpointConfig, Service, Site
from empd.connectors.failures import ConnectorError, ServiceUnavailable, describe
from empd.connectors.protocol.auth import AuthConfig, Credentials, secrets_of
from empd.connectors.protocol.cache import CacheConfig
from empd.connectors.protocol.circuit_breaker import CircuitConfig
from empd.connectors.protocol.correlation import Correlation, Delivery, Fate, MessageType
from empd.connectors.protocol.dialect import Dialect
from empd.connectors.protocol.identity import Identity
from empd.connectors.protocol.link import LinkState
from empd.connectors.protocol.rate_limit import RateLimitConfig
from empd.connectors.protocol.retry import RetryConfig, asked_wait_s
from empd.connectors.protocol.run import Run
from empd.connectors.protocol.socket import Frame, Handshake, KeptSocket, SocketOptions
from empd.connectors.protocol.verdicts import Retry
from empd.connectors.redaction import Redaction
from empd.errors import FailureClass

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class WebSocketConfig(EndpointConfig):
    """Where to and how; times in seconds.

    `url` (`ws://` or `wss://`), else `path` at the service's own endpoint. `message_timeout_s`: longest silence about a
    job before it is asked for; `job_timeout_s`: limit of a whole job beside the job's own (0: none).
    `heartbeat_interval_s` 0: no heartbeat. A job holds at most `queue_messages_max` messages that were not looked at
    yet; ends of jobs that nobody waits for yet are kept up to `early_results_max` and `early_bytes_max`.
    `rate_limit` counts jobs that are handed over; `circuit` jobs that failed by the service's fault.
    """

    url: str = ""
    path: str = "/"
    auth: AuthConfig | None = None
    headers: dict[str, str] = {}
    subprotocols: tuple[str, ...] = ()
    connect_timeout_s: Positive = 10.0
    heartbeat_interval_s: NotNegative = 30.0
    pong_timeout_s: Positive = 10.0
    reconnect: RetryConfig = RetryConfig(attempts_max=6, base_s=2.0, cap_s=30.0)
    message_timeout_s: Positive = 300.0
    job_timeout_s: NotNegative = 0.0
    message_bytes_max: Count = 10 << 20
    queue_messages_max: Count = 1_000
    early_results_max: Count = 256
    early_bytes_max: Count = 64 << 20
    rate_limit: RateLimitConfig | None = None
    circuit: CircuitConfig | None = None
    cache: CacheConfig | None = None


class SocketService(Dialect, Service):
    """The connection's side of a `WebSocketConnector`."""

    protocol: ClassVar[str] = "websocket"
    Config: ClassVar[type[ConnectorConfig]] = WebSocketConfig
    config: WebSocketConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        c = self.config
        self._options = SocketOptions(
            c.connect_timeout_s, c.heartbeat_interval_s, c.pong_timeout_s, c.message_bytes_max, c.reconnect
        )
        self.socket = KeptSocket(self, self._options)
        self.correlation = Correlation(
            messages_max=c.queue_messages_max, early_max=c.early_results_max, early_bytes_max=c.early_bytes_max
        )
        self.runs: dict[tuple[int, int], Run] = {}
        self.in_turn: Run | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.redact = Redaction(site.learn)
        self.redact.learn([*site.secrets.values(), *secrets_of(c.auth)])
        self._identity = Identity(c.auth, self.redact.learn_passing)
        self._shown = Credentials()

    async def open(self) -> None:
        """Ready to connect, also after `close`, which ends a connection for good."""
        if self._closed:
            self._closed, self.socket = False, KeptSocket(self, self._options)

    async def check_health(self) -> bool:
        """Whether the connection is up; connects where it is not."""
        if self.socket.state is LinkState.WAITING:
            raise ServiceUnavailable(f"connects again: {self.socket.reason}")
        await self.socket.wanted()
        return True

    async def close(self) -> None:
        """Ends the connection."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.socket.close()
        await self._identity.close()
        self._closed = True

    async def send(self, message: Any) -> None:
        """Sends a message: text and bytes as they are, anything else as JSON. Raises ServiceUnavailable."""
        await self.socket.send(_frame(message))

    def decode(self, frame: Frame) -> Any:
        """A frame as a message: text as JSON, bytes as they are. Raises ValueError."""
        return msgspec.json.decode(frame) if isinstance(frame, str) else frame

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Has something done beside the jobs; `close` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what the socket asks (see SocketOwner) ----------------------------------------------------------------------

    async def handshake(self) -> Handshake:
        """Where to, and with which credentials."""
        config = self.config
        url = config.url or websocket_url(self.site.endpoint, config.path)
        self._shown = shown = await self._identity.present()
        return Handshake(url, {**config.headers, **shown.headers}, shown.query, config.subprotocols)

    async def renew(self) -> bool:
        """Fetches another token, where credentials are of that kind."""
        if self._identity.renewable:
            self._shown = await self._identity.renew(self._shown)
        return self._identity.renewable

    def refused(self, error: Exception) -> ConnectorError:
        """A failed attempt to connect; a path that is not there is the operator's to mend, not the job's fault."""
        if isinstance(error, aiohttp.WSServerHandshakeError):
            row = self.verdicts.of_answer(error.status)
            asked_s = asked_wait_s(error.headers or {}, time.time())
            if row.failure in (FailureClass.AUTH, FailureClass.RATE_LIMITED):
                return row.error(retry_after_s=asked_s)
            return ServiceUnavailable(f"no WebSocket there: HTTP status {error.status}", retry_after_s=asked_s)
        row_or_none = self.verdicts.of_exception(error)
        retry = row_or_none is None or row_or_none.retry is not Retry.NEVER
        return ServiceUnavailable(self.redact(describe(error)), retry=retry)

    async def greet(self, again: bool) -> None:
        """The connection is up."""
        await self.on_connection_established(again)
        self.log.service_event("connected", again=again)
        self.site.report("connection", "open")
        self.site.metrics.counter("websocket_connections_total").inc()

    def heartbeat(self) -> Frame | None:
        """What asks for a sign of life."""
        message = self.build_heartbeat_message()
        return None if message is None else _frame(message)

    def lost(self, reason: str) -> None:
        """The connection is gone and will be tried again."""
        self.site.report("connection", f"lost, connects again: {reason}")
        self.log.service_event("connection_lost", "warning", reason=reason, jobs=len(self.runs))

    def given_up(self, error: ConnectorError) -> None:
        """The connection is gone for now: what runs on it cannot go on."""
        self.correlation.fail_all(error)
        self.site.report("connection", f"none: {error.message}")
        self.log.service_event("disconnected", "warning" if self.runs else "info", reason=error.message)

    def received(self, frame: Frame) -> None:
        """A message has come."""
        try:
            self.on_message(self.decode(frame), len(frame))
        except Exception as error:  # a message that nobody foresaw must not end a connection that all jobs share
            self._count("unreadable")
            self.log.warning("websocket_message_failed", reason=self.redact(describe(error)))

    def on_message(self, message: Any, size: int) -> None:
        """Every decoded message comes here first, and is led to its job from here."""
        kind = self.classify_message(message)
        if kind is MessageType.CONNECTION:
            self.on_connection_message(message)
        if kind in (MessageType.CONNECTION, MessageType.HEARTBEAT):
            return
        key = self.extract_job_id(message)
        if kind is MessageType.JOB_SUBMIT and key is not None:
            self._name(key, message)
        fate = self.correlation.deliver(key, Delivery(kind, message, size))
        if fate is not Fate.DELIVERED:
            self._count(fate.value)

    def _name(self, key: str, message: Any) -> None:
        """The service says what it calls a job."""
        run = self.in_turn
        reference = self.extract_reference(message)
        if reference is not None:
            run = next((run for run in self.runs.values() if run.key == reference), None)
        if run is not None and not run.named:
            self.correlation.alias(run.box, key)
            run.key, run.named = key, True
            run.wake()

    def _count(self, fate: str) -> None:
        self.site.metrics.counter("websocket_messages_set_aside_total", {"fate": fate}).inc()


def websocket_url(endpoint: str, path: str) -> str:
    """`http://host:port` and a path as a WebSocket's address. Raises ServiceUnavailable when there is no endpoint."""
    scheme, found, rest = endpoint.partition("://")
    if not found:
        raise ServiceUnavailable("no url is configured, and the service has no endpoint")
    return f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest.rstrip('/')}/{path.lstrip('/')}"


def _frame(message: Any) -> Frame:
    return message if isinstance(message, (str, bytes)) else msgspec.json.encode(message).decode()
