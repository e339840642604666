"""`empd connectors check` and `empd connectors new`: prove a connector, and begin one."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empd import loading
from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.errors import ConfigError

if TYPE_CHECKING:
    from empd.connectors.conformance import Case

PROTOCOLS = ("http", "poll", "stream", "websocket", "grpc", "python")


def _json(_: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param=parameter) from None


@click.command()
@click.argument("name", required=False)
@click.option("--mapping", type=click.Path(path_type=Path), help="NAME is a service of this mapping.")
@click.option("--config", callback=_json, help="Its api_config, as JSON.")
@click.option("--url", default="", help="A server of your own; faults are injected between it and the connector.")
@click.option("--payload", callback=_json, help="A job to submit, as JSON; without one nothing is submitted.")
@click.option("--submits", multiple=True, help="Requests that submit work: 'POST /jobs', 'SEND job', 'CALL /a.B/C'.")
@click.option("--live", is_flag=True, help="Ask the mapping's own service too.")
@click.option("--list", "list_them", is_flag=True, help="Show the checks and the connectors that bring a server.")
@options.as_json
def check(name: str | None, list_them: bool, json_output: bool, **given: Any) -> int:
    """Check a connector against a service that is broken on purpose.

    NAME is a built-in connector, a class (module:Class), a case of your own (module:CASE), or a service of --mapping.
    Exit code 1 when a check fails.
    """
    if list_them:
        return _listed(json_output)
    if name is None:
        raise click.UsageError("give the NAME of a connector, or --list")
    from empd.connectors.conformance import Outcome, prove_all

    findings = asyncio.run(prove_all(_case(name, given)))
    failed = any(finding.outcome is Outcome.FAILED for finding in findings)
    if json_output:
        checks = [dict(finding._asdict(), outcome=finding.outcome.value) for finding in findings]
        output.print_json({"connector": name, "ok": not failed, "checks": checks})
    else:
        rows = [(finding.check, finding.outcome.value, finding.seen or finding.reason) for finding in findings]
        output.print_table(("check", "outcome", "seen"), rows)
    return ExitCode.FAILED if failed else ExitCode.OK


def _listed(json_output: bool) -> int:
    from empd.connectors.conformance import CHECKS, builtin

    if json_output:
        output.print_json(
            {"checks": {name: check.reason for name, check in CHECKS.items()}, "connectors": builtin.names()}
        )
    else:
        output.print_table(("check", "proves"), [(name, check.reason) for name, check in CHECKS.items()])
        print(f"with a server of their own: {', '.join(builtin.names())}; the others need --url")
    return ExitCode.OK


def _case(name: str, given: dict[str, Any]) -> Case:
    """What is to be checked. Raises UsageError."""
    from empd.connectors.conformance import NOTHING, Case, case_of
    from empd.connectors.registry import ConnectorUnavailable

    places = ["" if sys.path[0] == "" else str(Path.cwd()), *map(str, loading.load_places().settings.python_path)]
    sys.path[:0] = [place for place in places if place not in sys.path]
    own = not (given["mapping"] or given["url"] or given["config"])
    if own:
        found = case_of(name) or (_attribute(name) if ":" in name else None)
        if isinstance(found, Case):
            return found
    try:
        kind, api_config, url = _from_mapping(name, given) if given["mapping"] else (_class(name), {}, "")
    except ConnectorUnavailable as error:
        raise click.UsageError(str(error)) from None
    url = given["url"] or url
    payload = NOTHING if given["payload"] is None else given["payload"]
    api_config = {**api_config, **(given["config"] or {})}
    transport = _transport(kind.protocol, api_config)
    guessed = ("POST *",) if url and payload is not NOTHING and transport == "http" else ()
    return Case(
        connector=kind,
        api_config=api_config,
        server=_server(url) if url else None,
        payload=payload,
        submits=given["submits"] or guessed,
        transport=transport,
    )


def _transport(protocol: str, api_config: dict[str, Any]) -> str:
    """What its gate has to understand. TLS is only understood over HTTP."""
    if protocol == "grpc":
        return "tcp" if api_config.get("tls") is not None else "grpc"
    return "websocket" if protocol == "websocket" else "http"


def _attribute(name: str) -> Any:
    from empd.connectors.conformance import Case

    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise click.UsageError(f"{name}: {error}") from None
    return found() if callable(found) and not isinstance(found, (type, Case)) else found


def _class(name: str) -> Any:
    from empd.connectors.registry import load_class

    return load_class(name.partition(":")[2] or name, name if ":" in name else None)


def _from_mapping(name: str, given: dict[str, Any]) -> tuple[Any, dict[str, Any], str]:
    """Class, configuration and, with --live, the address of a service. Raises ConfigError, ConnectorUnavailable."""
    from empd.connectors.registry import load_class
    from empd.mapping import Mapping

    mapping = Mapping.load(given["mapping"])
    service = mapping.services.get(name)
    if service is None:
        known = ", ".join(sorted(mapping.services))
        raise ConfigError([f"{mapping.source}: no service {name!r}; there are: {known}"])
    kind = load_class(service.connector, mapping.connector_path(service.connector) or None)
    api_config = dict(service.api_config)
    url = str(api_config.pop("base_url", "") or kind.default_base_url)
    port = api_config.pop("base_port", 0) or kind.default_base_port
    if not url and port:
        url = f"http://{api_config.get('host', '127.0.0.1')}:{port}"
    return kind, api_config, url if given["live"] else ""


def _server(url: str) -> Callable[[], Any]:
    import contextlib
    from collections.abc import AsyncIterator

    from empd.connectors.conformance import Server

    @contextlib.asynccontextmanager
    async def theirs() -> AsyncIterator[Server]:
        yield Server(url.rstrip("/"))

    return theirs


@click.command()
@click.argument("name")
@click.option("--protocol", type=click.Choice(PROTOCOLS), required=True, help="What its service speaks.")
@click.option("--directory", type=click.Path(path_type=Path), default=Path(), help="Where; by default here.")
def new(name: str, protocol: str, directory: Path) -> None:
    """Write a connector to begin with: NAME.py, its test, and a mapping.

    It works as written, against a pretended service; nothing that exists is overwritten.
    """
    from empd.connectors.conformance import skeleton

    try:
        files = skeleton.files_of(name, protocol)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    taken = [path for path in files if (directory / path).exists()]
    if taken:
        raise click.UsageError(f"not overwritten: {', '.join(str(directory / path) for path in taken)}")
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (directory / path).write_bytes(content)
        print(directory / path)
    [mapping] = (directory / path for path in files if path.endswith(".json"))
    print(f"to try it: empd run --mapping {mapping} --python-path {directory}; to prove it: pytest {directory}")
