"""What every connector is: identity, typed configuration, and a life with states. Its errors are in `failures`.

Connector                 identity, Config, open, close, check_health
└── Service               process(job, context) → Result or any value; can_process_job before it
abilities, each a base class of its own, found with issubclass:
    Cancellable           cancel(job, context)
    Resumable             resume(job, context): takes up context.last_checkpoint
    ReportsProgress       calls context.progress at least every `progress_interval_s`
    HasModels             models(): names of the models loaded now
    DescribesService      service_info(): facts of the service behind it
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec

from empd.connectors.context import Context, JobView
from empd.connectors.endpoints import Endpoints
from empd.connectors.failures import ConnectorError, ServiceUnavailable, describe
from empd.connectors.logger import SILENT, ConnectorLogger
from empd.connectors.meters import NO_METERS, Meters
from empd.device import Device


class ConnectorState(enum.StrEnum):
    """Where a connector stands. The base and the worker drive it, never the connector."""

    STARTING = "starting"
    WAITING_FOR_SERVICE = "waiting_for_service"
    CONNECTING = "connecting"
    IDLE = "idle"
    ACTIVE = "active"
    ERROR = "error"
    OFFLINE = "offline"


class ConnectorConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of every `Config`: fields are the keys of `api_config`; an unknown key is an error."""


class EndpointConfig(ConnectorConfig):
    """For services that listen on an address of their own: `base_url` as it is, or `base_port`, to which the number of
    the worker's GPU is added, on `host`. `Site.endpoint` is what comes of it."""

    base_url: str = ""
    base_port: int = 0
    host: str = "127.0.0.1"


def _no_log(event: str, **fields: Any) -> None:
    """Drops a log line."""


def _no_report(key: str, value: Any) -> None:
    """Drops a fact."""


def _no_server(reason: str) -> None:
    """A service without a server of the daemon's own has none to replace."""


def _no_learn(secrets: Iterable[str]) -> None:
    """Nobody hides them here."""


def _no_hold(key: str, reason: str = "", for_s: float = 0.0) -> None:
    """Nobody gives jobs here."""


NO_ENDPOINTS = Endpoints()


class Site(NamedTuple):
    """Where a connector instance runs: all it is told beside its own configuration.

    `secrets` holds the environment variables that `required_env` names. `log` writes one structured line of the
    worker's log: `log(event, **fields)`. `logger` and `metrics` are the connector's own (it finds its logger as
    `self.log`, with all that every record says bound to it). `report(key, value)` shows a fact of the service on the
    status page until it is replaced (None takes it away): a circuit's state, what a limiter holds back.
    `recycle_server(reason)` has the server of an internal service replaced between two jobs.
    `hold(key, reason, for_s)`: for that long this worker is given no jobs of the service, and status says why (a
    circuit that is open, an upstream's Retry-After); `hold(key)` lets go earlier. `learn(secrets)` keeps what no
    configuration holds (a token that was fetched) out of all that the worker says.
    """

    service: str = ""
    worker: str = ""
    device: Device | None = None
    max_concurrent_jobs: int = 1
    isolation: str = ""
    python_path: tuple[str, ...] = ()
    secrets: Mapping[str, str] = {}
    log: Callable[..., None] = _no_log
    logger: ConnectorLogger = SILENT
    metrics: Meters = NO_METERS
    endpoints: Endpoints = NO_ENDPOINTS
    report: Callable[[str, Any], None] = _no_report
    recycle_server: Callable[[str], None] = _no_server
    hold: Callable[..., None] = _no_hold
    learn: Callable[[Iterable[str]], None] = _no_learn

    @property
    def endpoint(self) -> str:
        """The URL of this worker's own instance of the service, as environment, mapping (`base_url`, `base_port`),
        run-time registration or the class say, in this order; empty when none does. Ask again for each request."""
        return self.endpoints.url


class Result(msgspec.Struct, frozen=True):
    """A job's value, and what it used (name → number, e.g. `{"tokens": 812}`)."""

    value: Any
    usage: dict[str, float] | None = None


class Connector:
    """The adapter to something outside.

    A subclass sets the identity, may set `Config`, and overrides `open`, `close` and `check_health` where it has
    something to do there. It is constructed once per worker, in the event loop's thread. `protocol` is the protocol
    layer's to set: log records are routed by it.
    """

    connector_id: ClassVar[str] = ""
    service_type: ClassVar[str] = "generic"
    version: ClassVar[str] = "1"
    protocol: ClassVar[str] = "local"
    default_base_url: ClassVar[str] = ""
    default_base_port: ClassVar[int] = 0
    Config: ClassVar[type[ConnectorConfig]] = ConnectorConfig
    required_env: ClassVar[tuple[str, ...]] = ()
    logs_jobs: ClassVar[bool] = True
    """False for what does no I/O: its jobs are counted, not logged one by one."""

    health_interval_s: ClassVar[float] = 30.0
    health_limit_s: ClassVar[float] = 60.0
    """A check that has not answered by then counts as failed: a service that hangs is not well."""

    close_limit_s: ClassVar[float] = 30.0
    """A `close` that has not returned by then is cancelled: what it waits for may never come."""

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        self.config = config
        self.site = site
        self.log = site.logger.bind(
            service=site.service,
            service_type=self.service_type,
            connector=self.connector_id or type(self).__name__,
            protocol=self.protocol,
        )
        self.on_probe: Callable[[bool], Awaitable[bool]] | None = None
        self.active_jobs = 0
        self.reason = ""
        self.may_start = True
        self._state = ConnectorState.STARTING

    @property
    def opened(self) -> bool:
        """Whether `open` has succeeded and `close` has not been called."""
        return self._state not in (ConnectorState.STARTING, ConnectorState.CONNECTING, ConnectorState.OFFLINE)

    @property
    def state(self) -> ConnectorState:
        """The present state; `active` while a job runs."""
        if self._state is ConnectorState.IDLE and self.active_jobs:
            return ConnectorState.ACTIVE
        return self._state

    async def open(self) -> None:
        """Makes ready: loads models, opens pools. Raising keeps the service closed, with the error as reason."""

    async def close(self) -> None:
        """Lets go of everything. Called once after a successful `open`."""

    async def check_health(self) -> bool:
        """Whether jobs can be taken now. Raising counts as False, with the error as reason."""
        return True

    async def update_config(self, config: ConnectorConfig) -> bool:
        """Takes over another configuration, already checked, while jobs run. True: it is in force. False: this
        connector is closed and one opened with it, which is what happens where this is not overridden."""
        return False

    @classmethod
    def environment_needed(cls) -> tuple[str, ...]:
        """`required_env` of the class and all its bases."""
        names: dict[str, None] = {}
        for kind in reversed(cls.__mro__):
            names.update(dict.fromkeys(kind.__dict__.get("required_env", ())))
        return tuple(names)

    async def start(self) -> bool:
        """Opens, then asks for health. True when jobs can be taken; else `reason` says why not.

        After a ConnectorError that says no retry, `may_start` is False: only a reload changes that.
        """
        self._state = ConnectorState.CONNECTING
        try:
            await self.open()
        except Exception as error:  # a connector is foreign code: whatever it raises must not reach its neighbours
            self._state = ConnectorState.OFFLINE
            self.may_start = not isinstance(error, ConnectorError) or error.retry
            self.reason = describe(error)
            return False
        self._state = ConnectorState.WAITING_FOR_SERVICE  # open: who stops it during its first probe has to close it
        return await self.probe()

    async def probe(self) -> bool:
        """Asks for health and sets the state."""
        was_open = self._state in (ConnectorState.IDLE, ConnectorState.ERROR)
        limit = asyncio.timeout(self.health_limit_s)
        try:
            async with limit:
                healthy = await self.check_health()
                if self.on_probe is not None:
                    healthy = await self.on_probe(healthy)
            self.reason = "" if healthy else "health check failed"
        except Exception as error:  # foreign code, as above
            late = f"the health check did not answer within {self.health_limit_s:g} s"
            healthy, self.reason = False, late if limit.expired() else describe(error)
        if healthy:
            self._state = ConnectorState.IDLE
        else:
            self._state = ConnectorState.ERROR if was_open else ConnectorState.WAITING_FOR_SERVICE
        return healthy

    async def stop(self) -> None:
        """Closes what `start` opened; never raises."""
        if not self.opened:
            return
        self._state = ConnectorState.OFFLINE
        limit = asyncio.timeout(self.close_limit_s)
        try:
            async with limit:
                await self.close()
        except Exception as error:  # foreign code, as above
            late = f"close did not return within {self.close_limit_s:g} s"
            self.reason = late if limit.expired() else describe(error)
            self.site.log("connector_close_failed", service=self.site.service, reason=self.reason)


class Service(Connector):
    """A connector that processes jobs."""

    async def process(self, job: JobView, context: Context) -> Any:
        """Does one job; returns a `Result` or any value that msgpack can carry.

        Raise a `ConnectorError` for a failure that you understand; anything else is `internal` and tried again.
        On cancel, asyncio.CancelledError is raised inside (unless the class is `Cancellable`).
        """
        raise ServiceUnavailable(f"{type(self).__name__} has no process method", retry=False)

    async def can_process_job(self, job: JobView, context: Context) -> bool:
        """Whether this job is one for this service: asked before anything is done, bought or looked up for it. False
        fails it as `invalid_input`, once and for all; raise InvalidInput to say what is wrong with it."""
        return True


class Cancellable:
    """Stops a running job by its own means."""

    cancel_grace_s: ClassVar[float] = 5.0
    """After `cancel` has returned, `process` has this long to end before its task is cancelled too."""

    async def cancel(self, job: JobView, context: Context) -> None:
        """Makes `process` of this job end soon (interrupt it upstream)."""


class Resumable:
    """Takes up what an earlier attempt began."""

    async def resume(self, job: JobView, context: Context) -> Any:
        """As `process`, when `context.last_checkpoint` is there."""


class ReportsProgress:
    """Calls `context.progress` while it works."""

    progress_interval_s: ClassVar[float] = 10.0
    """It does so at least this often."""


class HasModels:
    """Knows which models are loaded."""

    async def models(self) -> list[str]:
        """The names of the models loaded now."""
        return []


class DescribesService:
    """Can tell about the service behind it."""

    async def service_info(self) -> dict[str, Any]:
        """Version, features, limits: whatever an operator would like to see."""
        return {}
