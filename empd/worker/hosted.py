"""One service inside a worker: its connector's life, health, and what is offered of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from empd.connectors import plugins, registry
from empd.connectors.base import (
    Cancellable,
    Connector,
    ConnectorState,
    DescribesService,
    HasModels,
    Resumable,
    Service,
    Site,
)
from empd.connectors.context import Context, JobView
from empd.connectors.endpoints import Defaults, Endpoints, default_url, fixed_url
from empd.connectors.failures import ServiceUnavailable, describe, sayable
from empd.connectors.protocol.cache import Cache, CacheConfig
from empd.connectors.redaction import secrets_in
from empd.connectors.tracing import Tracer
from empd.errors import ConfigError
from empd.mapping import Mapping as ServiceMapping
from empd.wire.telemetry import Sample
from empd.worker import course
from empd.worker.facts import Report, shown
from empd.worker.holds import Holds
from empd.worker.log import Log
from empd.worker.port import Port
from empd.worker.tally import Tally

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
POLL_S = 0.02
CANCEL_AGAIN_S = 1.0
CANCELS_MAX = 10

Process = Callable[[JobView, Context], Any]


class Plan(NamedTuple):
    """What a service is built from, as the mapping says it; kept, so that a reload can build it again.

    `plugins` in the order that they are called; `plugin_options` by the same names.

    `missing_env` are variables that the mapping requires and the environment lacks; `required_env` all that it
    requires.
    """

    connector: str
    path: str
    api_config: Mapping[str, Any]
    missing_env: Sequence[str]
    required_env: Sequence[str]
    slots: int
    plugins: Sequence[str] = ()
    plugin_options: Mapping[str, Mapping[str, Any]] = {}
    health_interval_s: float | None = None


def plan_of(mapping: ServiceMapping, worker_type: str, name: str) -> Plan:
    """The plan of one service of a worker."""
    service = mapping.services[name]
    return Plan(
        connector=service.connector,
        path=mapping.connector_path(service.connector),
        api_config=service.api_config,
        missing_env=mapping.missing_service_env(worker_type, name, os.environ),
        required_env=(*mapping.workers[worker_type].required_env, *service.required_env),
        slots=mapping.slots(worker_type, name),
        plugins=(*mapping.plugins, *service.plugins),
        plugin_options=mapping.plugin_options,
        health_interval_s=service.health_interval_s,
    )


class Meter:
    """Stands in for a connector that could not be built where its running jobs are counted."""

    active_jobs = 0


class Hosted:
    """A service of this worker. While it cannot take jobs, `reason` says why.

    `on_change()` is called when what can be offered has changed.
    """

    def __init__(self, name: str, plan: Plan, site: Site, port: Port, log: Log, tracer: Tracer | None = None) -> None:
        self.name = name
        self._tracer = tracer or Tracer()
        self.redact = log.redact
        self.plan = plan
        self.site = site
        self.port = port
        self.meter: Connector | Meter = Meter()
        self.tally = Tally(name)
        self.models: list[str] = []
        self.cancellable: Cancellable | None = None
        self.process: Process = self._refuse
        self.resume: Process = self._refuse
        self.report = Report(self._told)
        self.hold = Holds(self._changed)
        self.registered: Callable[[], str] = lambda: ""
        self.on_facts: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        self._log = log
        self._connector: Service | None = None
        self._plugins = plugins.Plugins((), self._on_plugin_failure)
        self._info: dict[str, Any] = {}
        self._missing: list[str] = []
        self._configuring = self.problem = ""
        self._reason = "starting"
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str:
        """Why no job can be taken; empty when one can."""
        return self._configuring or self._reason or self.hold.reason

    @property
    def connector(self) -> Connector | None:
        """The connector, once it is built."""
        return self._connector

    def build(self) -> None:
        """Makes the connector. Never raises: what is wrong becomes the reason."""
        plan = self.plan
        self._missing = []
        self.redact.learn(secrets_in(plan.api_config))
        try:
            kind = registry.load_class(plan.connector, plan.path or None)
            needed = dict.fromkeys((*plan.required_env, *kind.environment_needed()))
            missing = dict.fromkeys((*plan.missing_env, *(name for name in needed if not os.environ.get(name))))
            if missing:
                self._missing = list(missing)
                raise registry.ConnectorUnavailable(f"missing environment variable: {', '.join(missing)}")
            self.port.secrets = {name: os.environ[name] for name in needed}
            self.redact.learn(self.port.secrets.values())
            site = self.site._replace(
                secrets=self.port.secrets,
                report=self.report,
                hold=self.hold,
                learn=self.redact.learn_passing,
                endpoints=self._endpoints(kind, plan.api_config),
            )
            connector = registry.build(kind, plan.api_config, site, os.environ)
            if not isinstance(connector, Service):
                raise registry.ConnectorUnavailable(f"connector {plan.connector!r} does not process jobs")
        except registry.ConnectorUnavailable as error:
            self._reason = self.redact(str(error))
            self._log("connector_unavailable", "error", service=self.name, reason=self._reason)
            self._told()
            return
        # A secret may have come from the environment, in the place of the mapping's.
        self.redact.learn(secrets_in(msgspec.to_builtins(connector.config, enc_hook=repr)))
        self._connector = self.meter = connector
        self.cancellable = connector if isinstance(connector, Cancellable) else None
        hung = [plugins.load(name, plan.plugin_options.get(name, {})) for name in plan.plugins]
        self._plugins = plugins.Plugins(hung, self._on_plugin_failure)
        for plugin in hung:
            if plugin.error:
                self._on_plugin_failure(plugin)
        connector.on_probe = self._plugins.health if hung else None
        cache = getattr(connector.config, "cache", None)
        process: Process = connector.process
        if isinstance(cache, CacheConfig):
            process = course.with_cache(process, Cache(cache))
        if type(connector).can_process_job is not Service.can_process_job:
            process = course.with_entrance(process, connector.can_process_job)
        self.process = self._around(connector, process)
        resume = connector.resume if isinstance(connector, Resumable) else connector.process
        self.resume = self._around(connector, resume)

    def _around(self, connector: Service, process: Process) -> Process:
        """`process` with what this service wants around it: nothing, where it wants nothing."""
        verbose = self._log.least == "debug"
        if self._plugins.hung:
            process = course.with_plugins(process, self._plugins)
        if self._tracer.on:
            process = course.with_span(process, self._tracer)
        return course.Course(process, connector.log, verbose) if connector.logs_jobs or verbose else process

    def _on_plugin_failure(self, plugin: plugins.Hung) -> None:
        self._log(
            "plugin_failed", "warning", service=self.name, plugin=plugin.name, reason=plugin.error, off=plugin.off
        )
        self._told()

    def _endpoints(self, kind: type[Connector], api_config: Mapping[str, Any]) -> Endpoints:
        device = self.site.device
        instance = device.index if device is not None else 0
        try:
            fixed = fixed_url(self.name, instance, api_config, os.environ)
        except ValueError as error:
            raise registry.ConnectorUnavailable(f"services.{self.name}: {error}") from None
        defaults = Defaults(kind.default_base_url, kind.default_base_port)
        return Endpoints(fixed, self.registered, default_url(defaults, instance))

    def facts(self) -> dict[str, Any]:
        """What the status page shows of this service."""
        connector = self._connector
        body: dict[str, Any] = {"connector": self.plan.connector, "reason": self.reason, "slots": self.plan.slots}
        if self._plugins.hung:
            body["plugins"] = [plugin.shown() for plugin in self._plugins.hung]
        if self.problem:
            body["configuration_refused"] = self.problem
        if self._missing:
            body["missing_variables"] = self._missing
        if connector is None:
            return shown({**body, "state": ConnectorState.OFFLINE.value, "report": self.report.facts}, self.redact)
        body |= {
            "version": connector.version,
            "service_type": connector.service_type,
            "protocol": connector.protocol,
            "state": connector.state.value,
            "endpoint": connector.site.endpoint or None,
            "models": self.models,
            "info": self._info,
            "configuration": msgspec.to_builtins(connector.config, enc_hook=repr),
            "report": self.report.facts,
        }
        return shown(body, self.redact)

    def _told(self) -> None:
        self.on_facts()

    def _changed(self) -> None:
        self._log("service_hold", "warning" if self.hold.reason else "info", service=self.name, reason=self.hold.reason)
        self.on_change()
        self.on_facts()

    async def open(self, on_change: Callable[[], None]) -> None:
        """Opens the connector and looks after its health from then on. Never raises."""
        self.on_change = on_change
        if self._connector is None:
            return
        await self._plugins.initialize(self._connector)
        await self._look(self._connector, self._connector.start())
        self._keeper = asyncio.create_task(self._keep(self._connector, on_change))

    async def update(self, plan: Plan) -> bool:
        """Takes another configuration. False: it is not good, the old one is in force and `problem` says why.

        A connector that takes it over goes on; another one is closed when its jobs have ended, and opened with it. One
        that cannot be opened with it is opened with the old one again.
        """
        connector, old, self.problem = self._connector, self.plan, ""
        if connector is not None:
            try:
                config = registry.configure(type(connector), plan.api_config, self.name, os.environ)
                self.redact.learn(secrets_in(msgspec.to_builtins(config, enc_hook=repr)))
                if await connector.update_config(config):
                    connector.config, self.plan = config, plan
                    self._log("service_configured", service=self.name, how="taken over")
                    self._told()
                    return True
            except Exception as error:  # foreign code may refuse a configuration by any exception
                self._refuse_config(describe(error))
                return False
        if await self._reopen(plan) or connector is None:
            return True
        problem = self.reason
        await self._reopen(old)
        self._refuse_config(problem)
        return False

    async def _reopen(self, plan: Plan) -> bool:
        """Closes, and opens with that configuration; whether the connector could be opened."""
        self._configuring = "its configuration changes"
        self.on_change()
        while self.meter.active_jobs:
            await asyncio.sleep(POLL_S)
        await self.close()
        self.plan = plan
        self.build()
        await self.open(self.on_change)
        self._configuring = ""
        self.on_change()
        return self._took_over()

    def _took_over(self) -> bool:
        return self._connector is not None and self._connector.opened

    def _refuse_config(self, problem: str) -> None:
        self.problem = self.redact(problem)
        self._log("service_config_refused", "error", service=self.name, reason=self.problem)
        self._told()

    async def close(self) -> None:
        """Closes the connector. Never raises."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await end(keeper)
        connector, self._connector = self._connector, None
        self.process = self.resume = self._refuse
        if connector is not None:
            await connector.stop()
        self.hold.clear()
        await self.port.storage.close()
        self._reason = self._reason or "closed"
        self._told()

    def samples(self) -> list[Sample]:
        """This service's series."""
        health = Sample("gauge", "empd_service_health", {"service": self.name}, 0.0 if self.reason else 1.0)
        own = [
            Sample(each.kind, each.name, {**each.labels, "service": self.name}, each.value, each.buckets)
            for each in self.site.metrics.series()
        ]
        return [*self.tally.samples(), health, *own]

    def interrupt(self, context: Context, too_late: Callable[[], None]) -> None:
        """Has the connector cancel a job by its own means; calls `too_late` when its grace is over."""
        task = asyncio.create_task(self._interrupt(context, too_late))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _interrupt(self, context: Context, too_late: Callable[[], None]) -> None:
        connector = self.cancellable
        if connector is None:
            too_late()
            return
        try:
            async with asyncio.timeout(connector.cancel_grace_s):
                await connector.cancel(context.job, context)
        except Exception as error:  # foreign code; the task is cancelled next anyway
            self._log("connector_cancel_failed", "warning", service=self.name, reason=describe(error))
            too_late()
            return
        await asyncio.sleep(connector.cancel_grace_s)
        too_late()

    async def _keep(self, connector: Service, on_change: Callable[[], None]) -> None:
        """Asks for health at the connector's interval; while it is bad, sooner, with back-off."""
        self.port.storage.on_failure = lambda: self._storage_failed(on_change)
        retry_s = RETRY_FIRST_S
        while True:
            if self._reason:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_MAX_S)
            else:
                retry_s = RETRY_FIRST_S
                await asyncio.sleep(self.plan.health_interval_s or connector.health_interval_s)
            before = (self._reason, self.models)
            if connector.opened:
                await self._look(connector, connector.probe())
            elif connector.may_start:
                await self._look(connector, connector.start())
            if (self._reason, self.models) != before:
                on_change()

    async def _look(self, connector: Service, healthy: Coroutine[Any, Any, bool]) -> None:
        was = self._reason
        self._reason = "" if await healthy else self.redact(connector.reason) or "not healthy"
        self._reason = self._reason or await self.port.storage.problem()
        if not self._reason and isinstance(connector, HasModels):
            try:
                self.models = [sayable(str(name)) for name in await connector.models()]
            except Exception as error:  # foreign code; a list of models is no reason to stop
                self._log("connector_models_failed", "warning", service=self.name, reason=describe(error))
        if not self._reason and isinstance(connector, DescribesService):
            try:
                self._info = dict(await connector.service_info())
            except Exception as error:  # foreign code; nor is this
                self._log("connector_info_failed", "warning", service=self.name, reason=describe(error))
        self._told()
        if self._reason != was:
            connector.log.health_check(not self._reason, self._reason, state=connector.state.value)

    def _storage_failed(self, on_change: Callable[[], None]) -> None:
        if not self._reason:
            self._reason = "assets cannot be saved"
            on_change()

    async def _refuse(self, job: JobView, context: Context) -> Any:
        raise ServiceUnavailable(self._reason or f"service {self.name!r} is closed")


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task until it has ended: foreign code in it may take a cancel for an error of its own, and go on. One
    that never ends is left behind."""
    for _ in range(CANCELS_MAX):
        task.cancel()
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)
        if task.done():
            return


async def reconfigure(
    services: Mapping[str, Hosted], worker_type: str, load: Callable[[], ServiceMapping], log: Log
) -> None:
    """Takes over what is new in the services' `api_config`: a worker is told to, where nothing else is another."""
    try:
        mapping = load()
    except ConfigError as error:
        log("reload_refused", "error", reason="; ".join(error.problems))
        return
    for name, hosted in services.items():
        if name in mapping.services and mapping.services[name].api_config != hosted.plan.api_config:
            await hosted.update(plan_of(mapping, worker_type, name))
