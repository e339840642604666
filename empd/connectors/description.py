"""What can be told of a connector class without a daemon: identity, abilities, and every key of its configuration."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from empd.connectors.base import (
    Cancellable,
    Connector,
    DescribesService,
    HasModels,
    ReportsProgress,
    Resumable,
)
from empd.connectors.failures import describe

ABILITIES: dict[str, type] = {
    "cancel": Cancellable,
    "resume": Resumable,
    "progress": ReportsProgress,
    "models": HasModels,
    "service_info": DescribesService,
}


def abilities_of(kind: type[Connector]) -> list[str]:
    """The names of what it can do beside its work."""
    return [name for name, ability in ABILITIES.items() if issubclass(kind, ability)]


def description_of(kind: type[Connector]) -> dict[str, Any]:
    """Plain data, for `empd connectors show`."""
    return {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "summary": " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split()),
        "connector_id": kind.connector_id,
        "service_type": kind.service_type,
        "version": kind.version,
        "protocol": kind.protocol,
        "abilities": abilities_of(kind),
        "required_env": list(kind.environment_needed()),
        "health_interval_s": kind.health_interval_s,
        "default_endpoint": kind.default_base_url
        or (kind.default_base_port and f"port {kind.default_base_port}")
        or None,
        "configuration": _keys(kind),
    }


def _keys(kind: type[Connector]) -> dict[str, Any]:
    try:
        (_,), components = msgspec.json.schema_components([kind.Config])
    except (TypeError, NotImplementedError) as error:
        return {"": {"problem": describe(error)}}  # a type that JSON has no word for
    schema = components[kind.Config.__name__]
    required = set(schema.get("required", ()))
    return {name: {**field, "required": name in required} for name, field in schema["properties"].items()}
