"""From a name in the mapping to a connector object: built-in names, `module:Class` paths, entry points.

Everything that can go wrong with one connector ends as `ConnectorUnavailable` with the reason, so that it never
stops another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import msgspec

from empd.builtin import BUILT_IN_CONNECTORS
from empd.connectors.base import Connector, Site
from empd.connectors.failures import describe

ENTRY_POINT_GROUP = "empd.connectors"


class ConnectorUnavailable(Exception):
    """This connector cannot be used; the text says why."""


def load_class(name: str, path: str | None = None) -> type[Connector]:
    """The class behind a connector's name.

    `path` (`module:Class`) comes first, then the built-in names, then entry points. Raises ConnectorUnavailable.
    """
    target = path or BUILT_IN_CONNECTORS.get(name) or _entry_points().get(name)
    if target is None:
        known = ", ".join(sorted({*BUILT_IN_CONNECTORS, *_entry_points()}))
        raise ConnectorUnavailable(f"there is no connector {name!r}; give its path (module:Class), or one of: {known}")
    module_name, _, class_name = target.partition(":")
    if not class_name:
        raise ConnectorUnavailable(f"connector {name!r}: path {target!r} is not module:Class")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except Exception as error:  # an operator's module may raise anything while it is imported
        raise ConnectorUnavailable(f"connector {name!r}: importing {module_name} failed: {describe(error)}") from error
    if not isinstance(found, type) or not issubclass(found, Connector):
        raise ConnectorUnavailable(f"connector {name!r}: {target} is not a Connector class")
    return found


def build(cls: type[Connector], api_config: Mapping[str, Any], site: Site) -> Connector:
    """An instance with its typed configuration. Raises ConnectorUnavailable; a wrong key is named with its path."""
    try:
        config = msgspec.convert(dict(api_config), cls.Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConnectorUnavailable(f"services.{site.service}.api_config: {_with_path(str(error))}") from None
    try:
        return cls(config, site)
    except Exception as error:  # foreign code
        raise ConnectorUnavailable(f"service {site.service!r}: {describe(error)}") from error


def available() -> dict[str, str]:
    """Names that need no path → `module:Class`."""
    return {**_entry_points(), **BUILT_IN_CONNECTORS}


def _entry_points() -> dict[str, str]:
    return {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def _with_path(message: str) -> str:
    """`Expected … - at `$.steps`` as `steps: Expected …`."""
    text, found, where = message.rpartition(" - at `$")
    return f"{where.rstrip('`').lstrip('.')}: {text}" if found else message
