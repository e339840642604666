"""`empd connectors`: which there are, and what each of them takes (`check` and `new` are in `conformance`)."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from empd.builtin import BUILT_IN_CONNECTORS
from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.commands import Suggesting, closest
from empd.cli.conformance import check, new
from empd.cli.status import instances
from empd.client.endpoint import find_endpoint
from empd.connectors import registry
from empd.connectors.description import abilities_of, description_of
from empd.errors import ConfigError, EmpdError
from empd.loading import load_with_sources
from empd.mapping import Mapping


@click.group(cls=Suggesting)
def connectors() -> None:
    """List connectors, show what each takes, prove what one claims, begin a new one."""


connectors.add_command(check)
connectors.add_command(new)


def _mapping(path: Path | None) -> tuple[Mapping, list[str]]:
    """The mapping, so far as there is a good one, and what is wrong with it."""
    try:
        settings = load_with_sources({"mapping": str(path)} if path else {}).settings
        sys.path[:0] = [str(each) for each in settings.python_path if str(each) not in sys.path]
        return Mapping.load(settings.mapping), []
    except ConfigError as error:
        return Mapping(workers={}, services={}), error.problems


def _known(mapping: Mapping) -> dict[str, tuple[str, str]]:
    """Name → (where its class is, who says so)."""
    found = {name: (path, "installed") for name, path in registry.available().items()}
    found |= {name: (path, "built in") for name, path in BUILT_IN_CONNECTORS.items()}
    found |= {name: (entry.path, "mapping") for name, entry in mapping.connectors.items() if entry.path}
    return dict(sorted(found.items()))


def _row(mapping: Mapping, name: str, path: str, origin: str) -> dict[str, Any]:
    """One line of the list. A class that cannot be loaded, or whose configuration does not fit, is a problem."""
    services = [each for each, service in mapping.services.items() if service.connector == name]
    problems: list[str] = []
    row = {"name": name, "path": path, "origin": origin, "services": services, "problems": problems}
    try:
        kind = registry.load_class(name, path if origin == "mapping" else None)
    except registry.ConnectorUnavailable as error:
        return {**row, "problems": [str(error)]}
    for service in services:
        try:
            registry.configure(kind, mapping.services[service].api_config, service)
        except registry.ConnectorUnavailable as error:
            problems.append(str(error))
    return {**row, "protocol": kind.protocol, "version": kind.version, "abilities": abilities_of(kind)}


_mapping_option = click.option("--mapping", type=click.Path(path_type=Path), help="The service mapping.")


@connectors.command("list")
@_mapping_option
@options.as_json
def list_command(mapping: Path | None, json_output: bool) -> int:
    """List the connectors that a mapping can name. Exit code 1 when one of them cannot be used as it is configured."""
    found, problems = _mapping(mapping)
    rows = [_row(found, name, path, origin) for name, (path, origin) in _known(found).items()]
    problems = [*problems, *(problem for row in rows for problem in row["problems"])]
    if json_output:
        output.print_json({"connectors": rows, "problems": problems})
    else:
        columns = ("connector", "from", "protocol", "services", "can")
        output.print_table(
            columns,
            [
                (
                    row["name"],
                    row["origin"],
                    row.get("protocol", ""),
                    ", ".join(row["services"]),
                    ", ".join(row.get("abilities", ["cannot be used"])),
                )
                for row in rows
            ],
        )
        for problem in problems:
            click.echo(f"problem: {problem}")
    return ExitCode.FAILED if problems else ExitCode.OK


@connectors.command()
@click.argument("name")
@_mapping_option
@options.endpoint
@options.as_json
def show(name: str, mapping: Path | None, endpoint: str | None, json_output: bool) -> int:
    """Show a connector: what it can do, the keys of its configuration, and its instances where a daemon runs."""
    found, _ = _mapping(mapping)
    known = _known(found)
    if name not in known:
        raise click.UsageError(f"no connector {name!r}{closest(name, list(known))}")
    path, origin = known[name]
    try:
        body = description_of(registry.load_class(name, path if origin == "mapping" else None))
    except registry.ConnectorUnavailable as error:
        raise click.ClickException(str(error)) from None
    running: list[dict[str, Any]] = []
    with contextlib.suppress(EmpdError):  # it is told without a daemon, too
        running = [each for each in instances(find_endpoint(endpoint)) if each.get("connector") == name]
    body = {"name": name, "origin": origin, **body, "instances": running}
    if json_output:
        output.print_json(body)
        return ExitCode.OK
    click.echo(f"{name} ({body['class']}): {body['summary']}")
    click.echo(f"protocol {body['protocol']}, version {body['version']}; can: {', '.join(body['abilities']) or '-'}")
    if body["required_env"]:
        click.echo(f"needs the variables {', '.join(body['required_env'])}")
    output.print_table(("api_config", "type", "default"), [_key(*item) for item in body["configuration"].items()])
    rows = [
        (each["service"], each["worker"], each["state"], each.get("endpoint") or "", each["reason"]) for each in running
    ]
    if rows:
        output.print_table(("service", "worker", "state", "endpoint", "why"), rows)
    return ExitCode.OK


def _key(name: str, field: dict[str, Any]) -> tuple[str, str, str]:
    options = field.get("anyOf", [field])
    kinds = [str(each.get("type") or each.get("$ref", "any").rpartition("/")[2]) for each in options]
    if "enum" in field:
        kinds = [str(each) for each in field["enum"]]
    default = "required" if field.get("required") else str(field.get("default", ""))
    return name, " | ".join(kinds), default
