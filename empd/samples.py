"""What is written from the tables: the annotated `empd.toml`, and the JSON Schemas of settings and mapping."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import msgspec

from empd.asset import AssetConfig
from empd.checking import is_size
from empd.internal import InternalServer
from empd.mapping import ConnectorEntry, ForAll, JobRoute, Mapping, Service, TelemetryLog, WorkerType
from empd.settings import SETTINGS, Setting, Settings, plain

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SIZE_PATTERN = r"^\s*\d[\d_]*(\.\d+)?\s*([KkMmGgTt][Ii]?)?[Bb]?\s*$"
_VARIABLE_PATTERN = r"\$\{"

_MAPPING_KINDS = (ForAll, WorkerType, ConnectorEntry, Service, JobRoute, TelemetryLog, InternalServer, AssetConfig)

_HEAD = """\
# empd.toml: the settings of empd, with their defaults.
#
# Every setting can be given here, in the environment (state_dir as EMPD_STATE_DIR) and on the command line
# (--state-dir); the later wins. Sizes are bytes or texts like "512 MiB", times are seconds.
# `empd config check` names every mistake, `empd config show` what holds and where it came from.
"""


def sample_toml() -> str:
    """The annotated sample: every setting with its meaning and its default, all of them commented out."""
    rows = [row for row in SETTINGS.values() if row.name != "config"]
    return "\n".join([_HEAD, *(_sample_row(row) for row in rows)])


def _sample_row(row: Setting) -> str:
    text = f"{row.help} Takes {row.accepted}."
    lines = textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
    value = plain(row.default, is_size(row.type))
    if value is None:
        lines.append(f"# Default: {row.default_text}.")
    lines.append(f"#{row.name} = {json.dumps(row.example if value is None else value)}")
    return "\n".join(lines) + "\n"


def settings_schema() -> dict[str, Any]:
    """The JSON Schema of `empd.toml`."""
    _, components = msgspec.json.schema_components([Settings], schema_hook=_path_schema)
    raw = components["Settings"]
    properties = raw["properties"]
    properties.pop("config")
    for name, schema in properties.items():
        row = SETTINGS[name]
        schema.pop("default", None)
        if is_size(row.type):
            schema = properties[name] = _also_size(schema)
        schema["description"] = f"{row.help} Takes {row.accepted}."
        if row.default is not None:
            schema["default"] = plain(row.default)
    return {
        "$schema": _DIALECT,
        "title": "empd.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def mapping_schema() -> dict[str, Any]:
    """The JSON Schema of the service mapping. Where a number is wanted, a `${VAR}` may stand."""
    _, components = msgspec.json.schema_components(_MAPPING_KINDS, ref_template="#/$defs/{name}")
    for kind in _MAPPING_KINDS:
        definition = components[kind.__name__]
        for field in msgspec.structs.fields(kind):
            schema = definition["properties"][field.name]
            definition["properties"][field.name] = _or_text(schema, is_size(field.type))
        definition |= {"patternProperties": {"^//": {}}, "additionalProperties": False}
    sections = {"workers": WorkerType, "connectors": ConnectorEntry, "services": Service, "assets": AssetConfig}
    entries = {
        section: {
            "type": "object",
            "patternProperties": {"^//": {}},
            "additionalProperties": {"$ref": f"#/$defs/{kind.__name__}"},
        }
        for section, kind in sections.items()
    }
    return {
        "$schema": _DIALECT,
        "title": "service-mapping.json",
        "type": "object",
        "properties": {"$schema": {"type": "string"}, **entries, **components.pop(ForAll.__name__)["properties"]},
        "patternProperties": {"^//": {}},
        "required": ["workers", "services"],
        "additionalProperties": False,
        "$defs": components,
    }


def _path_schema(_: type) -> dict[str, Any]:
    """The only type in the table that JSON has no word for is a path."""
    return {"type": "string", "minLength": 1}


def _also_size(schema: dict[str, Any]) -> dict[str, Any]:
    number = {key: schema[key] for key in ("type", "minimum", "maximum") if key in schema}
    return {"anyOf": [number, {"type": "string", "pattern": _SIZE_PATTERN}]}


def _or_text(schema: dict[str, Any], size: bool) -> dict[str, Any]:
    """The schema of a field that may also be written as `${VAR}`, or as a size."""
    text = json.dumps(schema)
    if not any(f'"{word}"' in text for word in ("number", "integer", "boolean")):
        return schema
    kept: dict[str, Any] = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    pattern = f"{_VARIABLE_PATTERN}|{_SIZE_PATTERN}" if size else _VARIABLE_PATTERN
    return {"anyOf": [schema, {"type": "string", "pattern": pattern}], **kept}


def fluent_bit_inputs(mapping: Mapping) -> str:
    """The sections for etc/fluent-bit.conf that collect the `telemetry_logs` of a mapping's services."""
    sections = [
        "\n".join(
            [
                "[INPUT]",
                "    Name               tail",
                f"    Tag                empd.file.{log.name or service}",
                f"    Path               {log.path}",
                "    Path_Key           path",
                "    Read_from_Head     On",
                "    Refresh_Interval   10",
                "    Buffer_Max_Size    1M",
                "    Skip_Long_Lines    On",
                f"    DB                 /var/lib/fluent-bit/empd/{log.name or service}.db",
                "    storage.type       filesystem",
            ]
        )
        for service, entry in mapping.services.items()
        for log in entry.telemetry_logs
    ]
    return "\n\n".join(sections) + "\n" if sections else ""
