"""The service mapping: which job types exist, which workers run them, through which connectors.

A job type leads to worker types (`job_service_required_map`), a worker type to services, a service to a connector.
What jobs leave behind as files goes where `assets` says. The file is JSON with `workers`, `connectors`, `services` and
`assets`; strings may hold `${VAR}` and `${VAR:-default}`, keys that begin with `//` are remarks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping as AbstractMapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from empd.asset import AssetConfig
from empd.builtin import BUILT_IN_CONNECTORS, installed_connectors
from empd.checking import Report, did_you_mean, read_struct, unknown_key
from empd.checking import described as _meta
from empd.device import Device
from empd.errors import ConfigError
from empd.internal import (
    SERVERS_PER_WORKER_MAX,
    SERVICE_NAME_CHARS_MAX,
    InternalServer,
    ServerInstance,
    check_server,
    instance_for,
)
from empd.substitution import substitute

EMBEDDED_NAME = "embedded mapping"

ASSETS_DEFAULT = "default"
"""The entry of `assets` that holds for services which name none; it need not be there."""

PINNED_VARIABLE = "CUDA_VISIBLE_DEVICES"
"""Set by the daemon in every worker; a mapping cannot set it."""

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$"
_NAMES_IN_WORDS = "letters, digits, _ . and -, at most 63, not beginning with . or -"
_IDENTIFIER_PATH = r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)?$"


PLUGINS_HELP = "Plugins around its jobs, in this order, after those named for all services."
PLUGINS_ACCEPTED = 'a list of "module:Class" or names of the entry point group empd.plugins'


class JobRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of type `job_service_required` are run by the worker's service `worker_service`."""

    job_service_required: Annotated[
        str, _meta("The job type, as in submit.", pattern=_NAME, accepted=f"a name: {_NAMES_IN_WORDS}")
    ]
    worker_service: Annotated[str, _meta("One of the worker's services.")]


class WorkerType(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of worker process."""

    services: Annotated[tuple[str, ...], _meta("The services this worker can run.")]
    is_gpu_bound: Annotated[bool, _meta("Each instance is pinned to one GPU.")] = False
    required_env: Annotated[tuple[str, ...], _meta("Without these variables it takes no job.")] = ()
    job_service_required_map: Annotated[
        tuple[JobRoute, ...], _meta("Which job type goes to which service; left out: the services' names.")
    ] = ()
    instances: Annotated[int, _meta("How many; left out: one per GPU when GPU-bound, else 1.", ge=0, le=256)] | None = (
        None
    )
    max_concurrent_jobs: Annotated[int, _meta("Jobs at once in one instance.", ge=1, le=65536)] = 1
    capabilities: Annotated[dict[str, Any], _meta("What jobs may require of it, beside its GPU.")] = {}
    memory_max_bytes: (
        Annotated[int, _meta("An instance above this is replaced between two jobs.", ge=0, unit="bytes")] | None
    ) = None
    environment: Annotated[dict[str, str], _meta("Variables set in its processes.")] = {}
    description: str | None = None

    def routes(self) -> dict[str, str]:
        """Job type → service."""
        if not self.job_service_required_map:
            return {service: service for service in self.services}
        return {route.job_service_required: route.worker_service for route in self.job_service_required_map}


class ConnectorEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connector class comes from; an empty path is a built-in one."""

    path: Annotated[
        str,
        _meta("Where the class is.", pattern=_IDENTIFIER_PATH, accepted='"module:Class", or "" for a built-in one'),
    ] = ""
    description: str | None = None


class TelemetryLog(msgspec.Struct, frozen=True, kw_only=True):
    """A log file of the service."""

    path: str
    name: str = ""
    description: str | None = None


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One configured use of a connector."""

    connector: Annotated[str, _meta("Name of a built-in connector, or of one under connectors.")]
    type: Annotated[Literal["external", "internal"], _meta("internal: a server that the daemon itself runs.")] = (
        "external"
    )
    installer: str | None = None
    installer_filename: str | None = None
    is_gpu_bound: Annotated[bool, _meta("Only for GPU-bound workers.")] = False
    build_stage: str | None = None
    required_env: Annotated[tuple[str, ...], _meta("Without these variables the service takes no job.")] = ()
    description: str | None = None
    api_config: Annotated[dict[str, Any], _meta("The connector's own configuration.")] = {}
    plugins: Annotated[tuple[str, ...], _meta(PLUGINS_HELP, accepted=PLUGINS_ACCEPTED)] = ()
    telemetry_logs: tuple[TelemetryLog, ...] = ()
    server: Annotated[InternalServer | None, _meta("How the daemon runs the server of an internal service.")] = None
    assets: Annotated[str, _meta("Where files go that its jobs make: an entry of assets.")] = ASSETS_DEFAULT
    timeout_s: Annotated[float, _meta("Limit of one run; 0 is none.", ge=0)] | None = None
    progress_timeout_s: Annotated[float, _meta("A run that shows no progress this long hangs.", gt=0)] | None = None
    retries: Annotated[int, _meta("Further attempts after a fault of the job.", ge=0, le=10_000)] | None = None
    health_interval_s: (
        Annotated[float, _meta("How often its health is asked for; left out: as its connector says.", gt=0, le=86400)]
        | None
    ) = None
    max_concurrent_jobs: Annotated[int, _meta("Jobs of this service at once in one worker.", ge=1, le=65536)] | None = (
        None
    )
    isolation: Annotated[
        Literal["thread", "process", "auto"], _meta("Where sync callables run; auto: by max_concurrent_jobs.")
    ] = "auto"


class WorkerPlan(NamedTuple):
    """One worker process to run."""

    name: str
    worker_type: str
    device: Device | None
    lap: int = 0  # how many workers of its type are before it on the same GPU


class RunLimits(NamedTuple):
    """What services say of a job type's runs; None: the settings' default holds. `timeout_s` 0: no limit."""

    timeout_s: float | None
    progress_timeout_s: float | None
    retries: int | None


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """A checked service mapping, variables replaced. Holds secrets where the file puts them: never show it whole."""

    workers: dict[str, WorkerType]
    services: dict[str, Service]
    connectors: dict[str, ConnectorEntry] = {}
    plugins: tuple[str, ...] = ()
    plugin_options: dict[str, dict[str, Any]] = {}
    assets: dict[str, AssetConfig] = {}
    source: str = EMBEDDED_NAME

    @classmethod
    def load(cls, path: Path | None = None, environ: AbstractMapping[str, str] | None = None) -> Mapping:
        """Reads a mapping file; None is the embedded one. Raises ConfigError with every problem in it."""
        environ = os.environ if environ is None else environ
        if path is None:
            return cls.from_dict(EMBEDDED, environ)
        return cls.from_dict(_read_json(path), environ, str(path))

    @classmethod
    def from_dict(cls, raw: Any, environ: AbstractMapping[str, str], source: str = EMBEDDED_NAME) -> Mapping:
        """The mapping in plain data; `source` names it in problems. Raises ConfigError with every problem in it."""
        problems: list[str] = []
        unset: set[str] = set()

        def report(key: str, text: str) -> None:
            if key not in unset:
                problems.append(f"{source}: {key}: {text}" if key else f"{source}: {text}")

        def report_variable(key: str, text: str) -> None:
            problems.append(f"{source}: {key}: {text}")
            unset.add(key)  # what such a value is not, beside unset, would only confuse

        plain = substitute(raw, environ, "", report_variable)
        sections = _read_sections(plain, report)
        for_all = _read_for_all(plain, report)
        _check_services(sections, report)
        _check_assets(sections, report)
        for name, worker in sections["workers"].items():
            if worker is not None:
                _check_worker(name, worker, sections["services"], report)
        if problems:
            raise ConfigError(problems)
        return cls(**sections, plugins=for_all.plugins, plugin_options=for_all.plugin_options, source=source)

    def worker_plan(self, devices: list[Device]) -> list[WorkerPlan]:
        """The workers to run on these devices. GPU-bound ones are `<type>-gpu<N>` (a second one on the same GPU
        `<type>-gpu<N>.1`), the others `<type>-<N>`. Left out, `instances` is one per GPU and server on it."""
        plan: list[WorkerPlan] = []
        for name, worker in self.workers.items():
            if not worker.is_gpu_bound:
                count = 1 if worker.instances is None else worker.instances
                plan += [WorkerPlan(f"{name}-{i}", name, None) for i in range(count)]
            elif devices:
                count = len(devices) * self._laps(worker) if worker.instances is None else worker.instances
                for i in range(count):
                    lap, place = divmod(i, len(devices))
                    suffix = f".{lap}" if lap else ""
                    device = devices[place]
                    plan.append(WorkerPlan(f"{name}-gpu{device.index}{suffix}", name, device, lap))
        return plan

    def _laps(self, worker: WorkerType) -> int:
        servers = [self.services[name].server for name in worker.services]
        return max((server.instances_per_gpu for server in servers if server is not None), default=1)

    def server_for(self, service: str, device: Device | None, lap: int) -> ServerInstance | None:
        """The instance of an internal service's server that a worker on this device uses; None for external ones."""
        entry = self.services[service]
        if entry.server is None:
            return None
        return instance_for(service, entry.server, device if entry.is_gpu_bound else None, lap)

    def server_plan(self, devices: list[Device]) -> list[ServerInstance]:
        """The servers that the workers on these devices use, each once, in the order of the file."""
        wanted: dict[str, ServerInstance] = {}
        for worker in self.worker_plan(devices):
            for service in dict.fromkeys(self.workers[worker.worker_type].routes().values()):
                instance = self.server_for(service, worker.device, worker.lap)
                if instance is not None:
                    wanted.setdefault(instance.name, instance)
        return list(wanted.values())

    def job_types(self) -> dict[str, list[tuple[str, str]]]:
        """Job type → (worker type, service) that run it, in the order of the file."""
        types: dict[str, list[tuple[str, str]]] = {}
        for name, worker in self.workers.items():
            for job_type, service in worker.routes().items():
                types.setdefault(job_type, []).append((name, service))
        return types

    def run_limits(self, job_type: str) -> RunLimits:
        """The limits of a job type: the most generous among the services that run it, None when one is silent."""
        services = [self.services[service] for _, service in self.job_types().get(job_type, [])]
        timeouts = [service.timeout_s for service in services]
        return RunLimits(
            0.0 if 0.0 in timeouts else _largest(timeouts),
            _largest([service.progress_timeout_s for service in services]),
            _largest([service.retries for service in services]),
        )

    def slots(self, worker_type: str, service: str) -> int:
        """How many jobs of a service one instance runs at once."""
        worker = self.workers[worker_type]
        return min(worker.max_concurrent_jobs, self.services[service].max_concurrent_jobs or worker.max_concurrent_jobs)

    def missing_env(self, environ: AbstractMapping[str, str]) -> dict[str, list[str]]:
        """Worker type → variables that it or its services require and do not have. Only types that lack some."""
        missing: dict[str, list[str]] = {}
        for name, worker in self.workers.items():
            lacking = {
                variable for service in worker.services for variable in self.missing_service_env(name, service, environ)
            }
            if lacking:
                missing[name] = sorted(lacking)
        return missing

    def missing_service_env(self, worker_type: str, service: str, environ: AbstractMapping[str, str]) -> list[str]:
        """The variables without which this worker type cannot offer this service; an empty one is missing."""
        worker = self.workers[worker_type]
        required = {*worker.required_env, *self.services[service].required_env}
        return sorted(name for name in required if not (worker.environment.get(name) or environ.get(name)))

    def asset_config(self, service: str) -> AssetConfig:
        """Where a service's files go; on this machine when the mapping does not say."""
        return self.assets.get(self.services[service].assets) or AssetConfig()

    def connector_path(self, connector: str) -> str:
        """`module:Class` of a connector, empty for a built-in one."""
        entry = self.connectors.get(connector)
        return entry.path if entry is not None else ""


def _largest(values: list[Any]) -> Any:
    return None if not values or None in values else max(values)


def _read_json(path: Path) -> Any:
    problems: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and not key.startswith("//"):
                problems.append(f"{path}: {key}: the key stands twice in one object; accepted: each key once")
            seen[key] = value
        return seen

    try:
        raw = json.loads(path.read_text("utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        text = f"{path}: line {error.lineno} column {error.colno}: not JSON: {error.msg}; accepted: a JSON object"
        raise ConfigError([text]) from None
    except RecursionError:
        raise ConfigError([f"{path}: nested too deep; accepted: a JSON object"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}; accepted: JSON in UTF-8"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; accepted: a readable JSON file"]) from None
    if problems:
        raise ConfigError(problems)
    return raw


class ForAll(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at the top of the file beside the sections."""

    plugins: Annotated[
        tuple[str, ...], _meta("Plugins of all services, in this order.", accepted=PLUGINS_ACCEPTED)
    ] = ()
    plugin_options: Annotated[
        dict[str, dict[str, Any]],
        _meta("The arguments that a plugin is made with, by the name it has in a list of plugins."),
    ] = {}


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "workers": WorkerType,
    "connectors": ConnectorEntry,
    "services": Service,
    "assets": AssetConfig,
}
_OPTIONAL_SECTIONS = ("connectors", "assets")


def _read_sections(raw: Any, report: Report) -> dict[str, dict[str, Any]]:
    """Each section's entries by name; None for an entry with mistakes, so that others can still refer to it."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    if not isinstance(raw, dict):
        report("", f"the file holds no object; accepted: an object with the keys {', '.join(_SECTIONS)}")
        return sections
    for key in raw:
        if key not in _SECTIONS and key not in ForAll.__struct_fields__ and key != "$schema":
            report(key, unknown_key(key, (*_SECTIONS, *ForAll.__struct_fields__)))
    for section, kind in _SECTIONS.items():
        entries = raw.get(section, {} if section in _OPTIONAL_SECTIONS else None)
        if not isinstance(entries, dict):
            report(section, "missing or not an object; accepted: an object, name → entry")
            continue
        for name, entry in entries.items():
            path = f"{section}.{name}"
            if not re.fullmatch(_NAME, name):
                report(path, f"not a name; accepted: {_NAMES_IN_WORDS}")
            sections[section][name] = read_struct(kind, entry, path, report)
    return sections


def _read_for_all(raw: Any, report: Report) -> ForAll:
    given = {key: raw[key] for key in ForAll.__struct_fields__ if key in raw} if isinstance(raw, dict) else {}
    return read_struct(ForAll, given, "", report) or ForAll()


def _check_services(sections: dict[str, dict[str, Any]], report: Report) -> None:
    known = sorted({*BUILT_IN_CONNECTORS, *sections["connectors"]})
    if any(service is not None and service.connector not in known for service in sections["services"].values()):
        known = sorted({*known, *installed_connectors()})
    for name, service in sections["services"].items():
        if service is not None and service.connector not in known:
            hint = did_you_mean(service.connector, known)
            report(
                f"services.{name}.connector",
                f'no connector "{service.connector}"{hint}; accepted: {", ".join(known)}',
            )
        if service is not None:
            _check_server(name, service, report)
    for name, entry in sections["connectors"].items():
        if entry is not None and not entry.path and name not in BUILT_IN_CONNECTORS:
            report(f"connectors.{name}.path", f'missing, and "{name}" is not built in; accepted: "module:Class"')


def _check_server(name: str, service: Service, report: Report) -> None:
    path = f"services.{name}"
    if service.server is not None and service.type != "internal":
        report(f"{path}.type", '"external", and the service has a server; accepted: "internal", or no server')
    elif service.server is None and service.type == "internal":
        text = 'missing; accepted: an object with at least command and base_port, or type "external" for a server that'
        report(f"{path}.server", f"{text} somebody else runs")
    elif service.server is not None:
        if len(name) > SERVICE_NAME_CHARS_MAX:
            report(path, f"too long a name for an internal service; accepted: {SERVICE_NAME_CHARS_MAX} characters")
        check_server(f"{path}.server", service.server, service.is_gpu_bound, report)


def _check_assets(sections: dict[str, dict[str, Any]], report: Report) -> None:
    entries = sections["assets"]
    for name, entry in entries.items():
        if entry is not None and (found := entry.problem()):
            report(f"assets.{name}.{found[0]}", found[1])
    known = list(dict.fromkeys((ASSETS_DEFAULT, *entries)))
    for name, service in sections["services"].items():
        if service is not None and service.assets not in known:
            hint = did_you_mean(service.assets, known)
            report(f"services.{name}.assets", f'no entry "{service.assets}"{hint}; accepted: {", ".join(known)}')


def _check_worker(name: str, worker: WorkerType, services: dict[str, Service | None], report: Report) -> None:
    path = f"workers.{name}"
    known = ", ".join(services) or "a key of services"
    if not worker.services:
        report(f"{path}.services", f"empty; accepted: at least one of {known}")
    for i, service_name in enumerate(worker.services):
        where = f"{path}.services[{i}]"
        if service_name not in services:
            report(where, f'no service "{service_name}"{did_you_mean(service_name, services)}; accepted: {known}')
            continue
        if service_name in worker.services[:i]:
            report(where, f'"{service_name}" stands twice; accepted: each service once')
        service = services[service_name]
        if service is not None and service.is_gpu_bound and not worker.is_gpu_bound:
            report(
                f"{path}.is_gpu_bound",
                f'false, and its service "{service_name}" is GPU-bound; accepted: true, or a service that needs no GPU',
            )
    _check_routes(path, worker, report)
    internal = [each for each in worker.services if (found := services.get(each)) is not None and found.server]
    if len(internal) > SERVERS_PER_WORKER_MAX:
        report(f"{path}.services", f"{len(internal)} internal ones; accepted: at most {SERVERS_PER_WORKER_MAX}")
    if PINNED_VARIABLE in worker.environment:
        report(f"{path}.environment.{PINNED_VARIABLE}", "set by the daemon; accepted: any other variable")


def _check_routes(path: str, worker: WorkerType, report: Report) -> None:
    seen: set[str] = set()
    for i, route in enumerate(worker.job_service_required_map):
        where = f"{path}.job_service_required_map[{i}]"
        if route.worker_service not in worker.services:
            hint = did_you_mean(route.worker_service, worker.services)
            report(
                f"{where}.worker_service",
                f'"{route.worker_service}" is not among the worker\'s services{hint}; '
                f"accepted: {', '.join(worker.services)}",
            )
        if route.job_service_required in seen:
            report(
                f"{where}.job_service_required",
                f'"{route.job_service_required}" stands twice; accepted: each job type once in a worker',
            )
        seen.add(route.job_service_required)


EMBEDDED: dict[str, Any] = {
    "workers": {
        "gpu": {
            "services": ["simulation"],
            "is_gpu_bound": True,
            "description": "One worker per GPU, one job at a time.",
        },
        "cpu": {
            "services": ["simulation", "echo"],
            "instances": 2,
            "max_concurrent_jobs": 512,
            "description": "Two workers without a GPU, so that every job type runs on any box.",
        },
    },
    "services": {
        "simulation": {
            "connector": "SimulationConnector",
            "max_concurrent_jobs": 1,
            "description": "Pretends to work: time, steps, failures on demand.",
        },
        "echo": {
            "connector": "SimulationConnector",
            "api_config": {"duration_s": 0, "echo": True},
            "description": "Sends the payload back at once; for measuring the way there and back.",
        },
    },
}
"""The mapping of `empd run` without any file."""
