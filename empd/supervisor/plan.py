"""Which children there should be, from settings, mapping and devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from empd.device import Device
from empd.errors import ConfigError
from empd.internal import InternalServer, check_ports
from empd.lifecycle import ChildKind
from empd.mapping import Mapping
from empd.settings import Settings
from empd.supervisor.children import Spec
from empd.supervisor.restart import Policy

Load = Callable[[], tuple[Settings, Mapping]]

SLOTS = 128
"""How many children one daemon can have."""

# A worker above its soft limit is replaced between two jobs; the kernel steps in only well above that.
_HARD_LIMIT_SHARE = 1.5
# A server has this much longer than its own limit says before its keeper is taken for stuck: stacks are dumped too.
_KEEPER_S = 5.0


class Plan(NamedTuple):
    """One configuration with all that follows from it."""

    settings: Settings
    mapping: Mapping
    devices: tuple[Device, ...]
    specs: tuple[Spec, ...]

    def memory_bytes_max(self, spec: Spec) -> int:
        """The memory at which the kernel kills the child's tree; 0 = none."""
        server = self._server(spec)
        if server is not None:
            return int(server.memory_max_bytes * _HARD_LIMIT_SHARE)
        if spec.kind is not ChildKind.WORKER:
            return 0
        own_bytes = self.mapping.workers[spec.worker_type].memory_max_bytes
        soft_bytes = self.settings.worker_memory_max_bytes if own_bytes is None else own_bytes
        return int(soft_bytes * _HARD_LIMIT_SHARE)

    def policy(self, spec: Spec, of_kind: Policy) -> Policy:
        """The child's limits: its kind's, and for a server what its entry says."""
        server = self._server(spec)
        if server is None:
            return of_kind
        stop_s = server.stop_s + _KEEPER_S
        return of_kind._replace(start_s=server.start_limit_s, stop_s=stop_s, term_grace_s=stop_s)

    def _server(self, spec: Spec) -> InternalServer | None:
        """The entry behind a server; None for other kinds, and for a service that a reload took away."""
        service = self.mapping.services.get(spec.worker_type) if spec.kind is ChildKind.SERVER else None
        return service.server if service is not None else None


def make_plan(settings: Settings, mapping: Mapping, devices: Sequence[Device]) -> Plan:
    """The children in the order of their start. There is telemetry where there is something to measure.

    Raises ConfigError when they are more than the board has slots, or two servers would share a port.
    """
    instances = mapping.server_plan(list(devices))
    check_ports(instances, mapping.source)
    specs = [Spec(ChildKind.BROKER, "broker"), Spec(ChildKind.WEB, "web")]
    if settings.telemetry_interval_s > 0 and any(not device.virtual for device in devices):
        specs.append(Spec(ChildKind.TELEMETRY, "telemetry"))
    specs += [
        Spec(ChildKind.SERVER, each.name, each.service, each.device, each.instance, each.server.fingerprint())
        for each in instances
    ]
    specs += [
        Spec(ChildKind.WORKER, worker.name, worker.worker_type, worker.device, worker.lap)
        for worker in mapping.worker_plan(list(devices))
    ]
    if len(specs) > SLOTS:
        raise ConfigError([f"{mapping.source}: workers: {len(specs)} processes in all; accepted: at most {SLOTS}"])
    return Plan(settings, mapping, tuple(devices), tuple(specs))
