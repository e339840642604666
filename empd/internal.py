"""Third-party servers that the daemon runs itself: what the mapping says of one, and where its instances are.

A GPU-bound service has `instances_per_gpu` of them on each GPU that its workers use, any other service has one.
Ports lie side by side: base port + GPU index × instances_per_gpu + instance.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from empd.checking import Report
from empd.checking import described as _meta
from empd.device import Device
from empd.errors import ConfigError

INSTANCES_PER_GPU_MAX = 16
SERVERS_PER_WORKER_MAX = 8
"""A worker shows on the board which servers it uses, and has room there for this many."""

EXIT_NOT_STARTED = 72
"""A keeper's exit status: the server could not be executed, or its port is taken."""

_GPU_PLACEHOLDERS = ("gpu_index", "gpu_uuid")
_PLACEHOLDER = re.compile(r"\{(port|instance|gpu_index|gpu_uuid)\}")
_NAME = re.compile(r"[^@]+@(?:gpu(\d+)|box)(?:\.(\d+))?")
_PORT_MAX = 65535
SERVICE_NAME_CHARS_MAX = 38
"""With "@gpu63.15" at its end it has to fit the board, where names are looked up."""


class InternalServer(msgspec.Struct, frozen=True, kw_only=True):
    """The server behind an internal service. In its texts `{port}`, `{instance}`, `{gpu_index}` and `{gpu_uuid}`
    stand for the instance's own."""

    command: Annotated[
        tuple[str, ...],
        _meta(
            "Program and arguments; there is no shell.", min_length=1, accepted="a list of strings, the program first"
        ),
    ]
    base_port: Annotated[int, _meta("Port of the first instance on GPU 0.", ge=1, le=_PORT_MAX)]
    instances_per_gpu: Annotated[
        int, _meta("Instances on each GPU, each with a worker of its own.", ge=1, le=INSTANCES_PER_GPU_MAX)
    ] = 1
    working_directory: Annotated[str, _meta("Where it runs; left out: where the daemon runs.")] = ""
    environment: Annotated[dict[str, str], _meta("Variables set beside the daemon's own.")] = {}
    health_url: Annotated[
        str,
        _meta("Answers below 400 when the server is well.", pattern=r"^https?://", accepted="http://… or https://…"),
    ] = "http://127.0.0.1:{port}/"
    health_interval_s: Annotated[float, _meta("How often it is asked.", ge=0.05, le=3600)] = 5.0
    health_timeout_s: Annotated[float, _meta("How long one answer may take.", gt=0, le=600)] = 5.0
    start_limit_s: Annotated[float, _meta("Not well this long after its start, it is stopped as hung.", gt=0)] = 600.0
    hang_s: Annotated[float, _meta("Not well this long while it runs, it is stopped as hung.", gt=0)] = 60.0
    stop_signal: Annotated[Literal["SIGTERM", "SIGINT"], _meta("What asks it to end.")] = "SIGTERM"
    stop_s: Annotated[float, _meta("How long it may take to end, before KILL.", ge=0, le=600)] = 10.0
    memory_max_bytes: Annotated[
        int, _meta("Its processes above this: replaced between two jobs; 0 is no limit.", ge=0, unit="bytes")
    ] = 0
    vram_max_bytes: Annotated[
        int, _meta("Its GPU memory above this: replaced between two jobs; 0 is no limit.", ge=0, unit="bytes")
    ] = 0
    recycle_after_jobs: Annotated[int, _meta("Replaced after this many jobs of a worker; 0 is never.", ge=0)] = 0
    log_bytes_max: Annotated[int, _meta("What is kept of its output.", ge=4096, unit="bytes")] = 16 << 20

    def fingerprint(self) -> str:
        """Equal for two entries that mean the same server; tells nothing of what is in them."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]


class ServerInstance(NamedTuple):
    """One instance of a service's server. `offset` counts a service's ports from its base port."""

    service: str
    server: InternalServer
    instance: int
    device: Device | None

    @property
    def offset(self) -> int:
        """Its place among the service's ports."""
        return self.instance + (self.device.index * self.server.instances_per_gpu if self.device is not None else 0)

    @property
    def port(self) -> int:
        """Where it is told to listen."""
        return self.server.base_port + self.offset

    @property
    def name(self) -> str:
        """Its name among the daemon's children: no worker's name has an @."""
        return instance_name(self.service, None if self.device is None else self.device.index, self.instance)

    @property
    def endpoint(self) -> str:
        """Where its workers find it."""
        return f"http://127.0.0.1:{self.port}"

    def fill(self, text: str) -> str:
        """The text with this instance's values for its placeholders; other braces stay."""
        device = self.device
        values = {"port": str(self.port), "instance": str(self.instance)}
        if device is not None:
            values |= {"gpu_index": str(device.index), "gpu_uuid": device.uuid}
        return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def instance_name(service: str, gpu_index: int | None, instance: int) -> str:
    """`comfyui@gpu0`, the second one on that GPU `comfyui@gpu0.1`; without a GPU `comfyui@box`."""
    place = "box" if gpu_index is None else f"gpu{gpu_index}"
    return f"{service}@{place}" + (f".{instance}" if instance else "")


def name_at(service: str, server: InternalServer, is_gpu_bound: bool, offset: int) -> str:
    """The name of the instance whose port is `offset` above the base port."""
    if not is_gpu_bound:
        return instance_name(service, None, offset)
    gpu_index, instance = divmod(offset, server.instances_per_gpu)
    return instance_name(service, gpu_index, instance)


def offset_of(name: str, server: InternalServer) -> int:
    """The other way round."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not an instance's name")
    return int(match[1] or 0) * server.instances_per_gpu + int(match[2] or 0)


def instance_for(service: str, server: InternalServer, device: Device | None, lap: int) -> ServerInstance:
    """The instance that a worker uses: that of its own GPU. `lap` counts the workers of its type on that GPU."""
    return ServerInstance(service, server, lap % server.instances_per_gpu, device)


def check_server(path: str, server: InternalServer, is_gpu_bound: bool, report: Report) -> None:
    """Reports what a server's entry says and cannot mean."""
    if "CUDA_VISIBLE_DEVICES" in server.environment:
        report(f"{path}.environment.CUDA_VISIBLE_DEVICES", "set by the daemon; accepted: any other variable")
    if is_gpu_bound:
        return
    if server.vram_max_bytes:
        report(f"{path}.vram_max_bytes", "the service is not GPU-bound; accepted: 0, or is_gpu_bound true")
    if server.instances_per_gpu != 1:
        report(f"{path}.instances_per_gpu", "the service is not GPU-bound; accepted: 1, or is_gpu_bound true")
    texts = [(f"{path}.command[{i}]", word) for i, word in enumerate(server.command)]
    texts += [(f"{path}.environment.{name}", value) for name, value in server.environment.items()]
    texts += [(f"{path}.working_directory", server.working_directory), (f"{path}.health_url", server.health_url)]
    for where, text in texts:
        for name in _GPU_PLACEHOLDERS:
            if f"{{{name}}}" in text:
                report(where, f"{{{name}}}, and the service is not GPU-bound; accepted: {{port}} and {{instance}}")


def check_ports(instances: list[ServerInstance], source: str) -> None:
    """Raises ConfigError where two instances would have one port, or a port would be none."""
    problems = []
    taken: dict[int, str] = {}
    for each in instances:
        where = f"{source}: services.{each.service}.server.base_port"
        if each.port > _PORT_MAX:
            problems.append(f"{where}: {each.name} would have port {each.port}; accepted: ports up to {_PORT_MAX}")
        elif taken.setdefault(each.port, each.name) != each.name:
            problems.append(f"{where}: {each.name} and {taken[each.port]} would share port {each.port}; accepted: "
                            "base ports far enough from each other")  # fmt: skip
    if problems:
        raise ConfigError(problems)


def log_path(state_dir: Path, name: str) -> Path:
    """Where an instance's output is kept; the older half lies beside it, with `.1` at the end."""
    return state_dir / "servers" / f"{name}.log"
