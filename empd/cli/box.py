"""What a configuration needs and this box does not have. A worker's own questions, asked before there is a worker."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from empd.connectors import plugins, registry
from empd.connectors.base import Connector, EndpointConfig, Site
from empd.connectors.endpoints import Defaults, Endpoints, default_url, fixed_url
from empd.connectors.failures import describe
from empd.connectors.redaction import Redaction, secrets_in
from empd.connectors.service.python_callable import PythonConfig
from empd.device import Device, virtual_devices
from empd.internal import ServerInstance
from empd.mapping import Mapping as ServiceMapping
from empd.mapping import WorkerPlan
from empd.settings import Settings
from empd.supervisor.devices import find

ENVIRONMENT_FILE = "/etc/empd/environment"
ANSWER_S = 20.0
"""How long one service may take to be opened and to say how it is."""


class Lack(NamedTuple):
    """One thing that is missing: the key that needs it, what it is, and what to do."""

    place: str
    text: str


def lacks(
    mapping: ServiceMapping, settings: Settings, environ: Mapping[str, str] | None = None, ask: bool = False
) -> list[Lack]:
    """What the workers of this mapping would lack here, each thing once.

    `ask`: also asks every service that somebody else runs how it is, as its worker would.
    """
    environ = os.environ if environ is None else environ
    sys.path[:0] = [str(path) for path in settings.python_path if str(path) not in sys.path]
    found, devices = _gpus(mapping, settings)
    plan = mapping.worker_plan(devices)
    for name, worker in mapping.workers.items():
        for service in dict.fromkeys(worker.routes().values()):
            found += _service(mapping, name, service, environ, [each for each in plan if each.worker_type == name], ask)
    for instance in mapping.server_plan(devices or virtual_devices(1)):
        found += _server(instance, environ)
    return list(dict.fromkeys(found))


def _gpus(mapping: ServiceMapping, settings: Settings) -> tuple[list[Lack], list[Device]]:
    bound = [name for name, worker in mapping.workers.items() if worker.is_gpu_bound]
    if not bound:
        return [], []
    devices, reason = find(settings.gpus)
    if reason and devices:
        return [Lack("gpus", reason)], devices
    if devices:
        return [], devices
    text = f"is GPU-bound, and there is no GPU ({reason}): none of them is started"
    return [Lack(f"workers.{name}", f'{text}; gpus = "virtual:1" tries it without one') for name in bound], []


def _service(
    mapping: ServiceMapping, worker: str, name: str, environ: Mapping[str, str], plan: list[WorkerPlan], ask: bool
) -> Iterator[Lack]:
    """What one worker type lacks for one of its services."""
    service, place = mapping.services[name], f"services.{name}"
    environ = {**environ, **mapping.workers[worker].environment}
    for hung in (
        plugins.load(each, mapping.plugin_options.get(each, {})) for each in (*mapping.plugins, *service.plugins)
    ):
        if hung.error:
            yield Lack(f"{place}.plugins", f"{hung.name}: {hung.error}; its jobs run without it")
    yield from _assets(mapping, name)
    missing = mapping.missing_service_env(worker, name, environ)
    try:
        kind = registry.load_class(service.connector, mapping.connector_path(service.connector) or None)
        missing += [each for each in kind.environment_needed() if not environ.get(each) and each not in missing]
        for variable in missing:
            yield Lack(
                f"{place}.required_env",
                f"the variable {variable} is not set: {worker} takes no job of this service; "
                f"under systemd it goes into {ENVIRONMENT_FILE}",
            )
        config = registry.configure(kind, service.api_config, name, environ)
    except registry.ConnectorUnavailable as error:
        yield Lack(f"{place}.connector", f"{error}: {worker} takes no job of this service")
        return
    if isinstance(config, PythonConfig):
        yield from _module(place, config.callable.partition(":")[0])
    if ask and not missing and service.server is None and isinstance(config, EndpointConfig):
        instances = {each.device.index if each.device is not None else 0 for each in plan}
        for instance in sorted(instances):
            yield from asyncio.run(_health(kind, service.api_config, name, instance, environ))


def _module(place: str, module: str) -> Iterator[Lack]:
    """Looked for, not imported: an operator's module may load a model."""
    top = module.partition(".")[0]
    try:
        there = importlib.util.find_spec(top) is not None
    except ValueError:  # a module that somebody put together by hand has no spec, and is there
        there = True
    if not there:
        yield Lack(f"{place}.api_config.callable", f"there is no module {top}: its folder goes into python_path")


async def _health(
    kind: type[Connector], api_config: Mapping[str, Any], name: str, instance: int, environ: Mapping[str, str]
) -> list[Lack]:
    """Opens the connector and closes it, as a worker does; what it says while it cannot take jobs."""
    secrets = {each: environ[each] for each in kind.environment_needed()}
    redact = Redaction()
    redact.learn([*secrets_in(api_config), *secrets.values()])
    where, reason = "", ""
    try:
        default = default_url(Defaults(kind.default_base_url, kind.default_base_port), instance)
        endpoints = Endpoints(fixed_url(name, instance, api_config, environ), default=default)
        where = f" at {endpoints.url}" if endpoints.url else ""
        connector = registry.build(kind, api_config, Site(service=name, secrets=secrets, endpoints=endpoints), environ)
        try:
            async with asyncio.timeout(ANSWER_S):
                if not await connector.start():
                    reason = connector.reason
        finally:
            await connector.stop()
    except TimeoutError:
        reason = f"no answer within {ANSWER_S:g} s"
    except (registry.ConnectorUnavailable, ValueError) as error:
        reason = describe(error)
    return [Lack(f"services.{name}", redact(f"takes no jobs{where}: {reason}"))] if reason else []


def _assets(mapping: ServiceMapping, service: str) -> Iterator[Lack]:
    entry = mapping.asset_config(service)
    if entry.provider == "azure" and not entry.secrets and importlib.util.find_spec("azure.identity") is None:
        yield Lack(
            f"assets.{mapping.services[service].assets}",
            "neither key, sas nor connection_string, and the managed identity needs pip install 'empd[azure]'",
        )


def _server(instance: ServerInstance, environ: Mapping[str, str]) -> Iterator[Lack]:
    """Whether a server that the daemon runs could be started."""
    server, place = instance.server, f"services.{instance.service}.server"
    folder = instance.fill(server.working_directory)
    if folder and not Path(folder).is_dir():
        yield Lack(f"{place}.working_directory", f"there is no directory {folder}")
    program = instance.fill(server.command[0])
    path = server.environment.get("PATH") or environ.get("PATH")
    if shutil.which(os.path.join(folder, program) if "/" in program else program, path=path) is None:
        yield Lack(
            f"{place}.command", f"{program} is no program that can be run here: install it, or name it by its path"
        )
