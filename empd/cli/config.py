"""`empd config`: check, show, schema, sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.commands import Suggesting
from empd.errors import ConfigError
from empd.loading import load_with_sources
from empd.mapping import Mapping
from empd.settings import SETTINGS, Settings, plain

_FILES = [
    click.option("--config", type=click.Path(path_type=Path), help="The settings file."),
    click.option("--mapping", type=click.Path(path_type=Path), help="The service mapping."),
]


def _files(command: Any) -> Any:
    for option in reversed(_FILES):
        command = option(command)
    return command


@click.group(cls=Suggesting)
def config() -> None:
    """Check, show and describe the configuration."""


def _flags(config: Path | None, mapping: Path | None, **more: str | None) -> dict[str, Any]:
    given = {"config": config, "mapping": mapping, **more}
    return {name: str(value) for name, value in given.items() if value is not None}


@config.command()
@_files
@click.option("--python-path", metavar="VALUE", help="As `empd run` takes it.")
@click.option("--gpus", metavar="VALUE", help="As `empd run` takes it.")
@click.option(
    "--ask", is_flag=True, help="Also ask services that run elsewhere whether they can be reached, and take jobs."
)
@click.option("--strict", is_flag=True, help="Exit code 1 also when something is only missing on this box.")
@options.as_json
def check(
    config: Path | None, mapping: Path | None, ask: bool, strict: bool, json_output: bool, **more: str | None
) -> int:
    """Check settings and service mapping; every problem is told at once, and what this box lacks for them: variables,
    GPUs, modules and extras of connectors, programs of servers that empd runs."""
    from empd.cli import box

    problems: list[str] = []
    found: Path | None = mapping
    settings: Settings | None = None
    try:
        settings = load_with_sources(_flags(config, mapping, **more)).settings
        found = settings.mapping
    except ConfigError as error:
        problems += error.problems
    # A wrong settings file must not hide what is wrong in the mapping.
    services: Mapping | None = None
    if found is None or found.exists():
        try:
            services = Mapping.load(found)
        except ConfigError as error:
            problems += error.problems
    missing = [] if settings is None or services is None else box.lacks(services, settings, ask=ask)
    told = [f"{lack.place}: {lack.text}" for lack in missing]
    if json_output:
        body = {"ok": not problems, "problems": problems, "missing": told, "mapping": str(found) if found else None}
        output.print_json(body)
    else:
        if services is not None and not problems:
            counts = f"{len(services.workers)} worker types, {len(services.services)} services"
            print(f"ok: {counts} in {found or 'the embedded mapping'}")
        for line in (*problems, *(f"missing here: {each}" for each in told)):
            print(line)
    return ExitCode.FAILED if problems or (strict and missing) else ExitCode.OK


@config.command()
@_files
@options.as_json
def show(config: Path | None, mapping: Path | None, json_output: bool) -> None:
    """Show every setting, its value and where it came from."""
    loaded = load_with_sources(_flags(config, mapping))
    values = {name: plain(getattr(loaded.settings, name)) for name in SETTINGS}
    if json_output:
        output.print_json({name: {"value": values[name], "source": loaded.sources[name]} for name in SETTINGS})
        return
    rows = [(name, _text(values[name]), loaded.sources[name]) for name in SETTINGS]
    output.print_table(("setting", "value", "from"), rows)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


@config.command()
@click.argument("which", type=click.Choice(["settings", "mapping"]), default="settings")
def schema(which: str) -> None:
    """Print the JSON Schema of the settings file or of the service mapping."""
    from empd import samples

    output.print_json(samples.settings_schema() if which == "settings" else samples.mapping_schema())


@config.command()
@click.argument("which", type=click.Choice(["settings", "mapping", "fluent-bit"]), default="settings")
@_files
def sample(which: str, config: Path | None, mapping: Path | None) -> None:
    """Print an annotated settings file, a mapping to begin with, or Fluent Bit's inputs for your services' logs."""
    if which == "fluent-bit":
        from empd import samples

        found = load_with_sources(_flags(config, mapping)).settings.mapping
        print(samples.fluent_bit_inputs(Mapping.load(found)), end="")
        return
    if which == "settings":
        from empd import samples

        print(samples.sample_toml(), end="")
        return
    import json

    from empd.mapping import EMBEDDED

    print(json.dumps(EMBEDDED, indent=2))
