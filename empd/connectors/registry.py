"""From a name in the mapping to a connector object: built-in names, `module:Class` paths, entry points.

Everything that can go wrong with one connector ends as `ConnectorUnavailable` with the reason, so that it never
stops another.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import msgspec

from empd.builtin import BUILT_IN_CONNECTORS, ENTRY_POINT_GROUP, installed_connectors
from empd.connectors.base import Connector, ConnectorConfig, Site
from empd.connectors.endpoints import variable_stem
from empd.connectors.failures import describe

__all__ = ["ENTRY_POINT_GROUP", "ConnectorUnavailable", "available", "build", "configure", "load_class"]


class ConnectorUnavailable(Exception):
    """This connector cannot be used; the text says why."""


def load_class(name: str, path: str | None = None) -> type[Connector]:
    """The class behind a connector's name.

    `path` (`module:Class`) comes first, then the built-in names, then entry points. Raises ConnectorUnavailable.
    """
    target = path or BUILT_IN_CONNECTORS.get(name) or installed_connectors().get(name)
    if target is None:
        known = ", ".join(sorted({*BUILT_IN_CONNECTORS, *installed_connectors()}))
        raise ConnectorUnavailable(f"there is no connector {name!r}; give its path (module:Class), or one of: {known}")
    module_name, _, class_name = target.partition(":")
    if not class_name:
        raise ConnectorUnavailable(f"connector {name!r}: path {target!r} is not module:Class")
    if path and class_name != name:
        raise ConnectorUnavailable(
            f"connector {name!r}: path names the class {class_name!r}; accepted: the class's name"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except Exception as error:  # an operator's module may raise anything while it is imported
        raise ConnectorUnavailable(f"connector {name!r}: importing {module_name} failed: {describe(error)}") from error
    if not isinstance(found, type) or not issubclass(found, Connector):
        raise ConnectorUnavailable(f"connector {name!r}: {target} is not a Connector class")
    return found


def configure(
    cls: type[Connector], api_config: Mapping[str, Any], service: str, environ: Mapping[str, str] | None = None
) -> ConnectorConfig:
    """The typed configuration: environment (`<SERVICE>_<KEY>`), then the mapping's `api_config`, then the class's
    defaults. Raises ConnectorUnavailable; a wrong key is named with its path."""
    given = dict(api_config)
    stem = variable_stem(service)
    from_environ = {}
    for field in msgspec.structs.fields(cls.Config):
        value = (environ or {}).get(f"{stem}_{field.encode_name.upper()}")
        if value:
            from_environ[field.encode_name] = f"{stem}_{field.encode_name.upper()}"
            given[field.encode_name] = _value_of(value)
    try:
        return msgspec.convert(given, cls.Config, strict=False)
    except msgspec.ValidationError as error:
        text = _with_path(str(error))
        variable = from_environ.get(text.partition(":")[0])
        where = f"environment: {variable}" if variable else f"services.{service}.api_config"
        raise ConnectorUnavailable(f"{where}: {text}") from None


def build(
    cls: type[Connector], api_config: Mapping[str, Any], site: Site, environ: Mapping[str, str] | None = None
) -> Connector:
    """An instance with its typed configuration. Raises ConnectorUnavailable."""
    config = configure(cls, api_config, site.service, environ)
    try:
        return cls(config, site)
    except Exception as error:  # foreign code
        raise ConnectorUnavailable(f"service {site.service!r}: {describe(error)}") from error


def available() -> dict[str, str]:
    """Names that need no path → `module:Class`."""
    return {**installed_connectors(), **BUILT_IN_CONNECTORS}


def _value_of(text: str) -> Any:
    """A variable's value: an object or a list where it is written as one, else the text."""
    if text[:1] in "{[":
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return text


def _with_path(message: str) -> str:
    """`Expected … - at `$.steps`` as `steps: Expected …`."""
    text, found, where = message.rpartition(" - at `$")
    return f"{where.rstrip('`').lstrip('.')}: {text}" if found else message
