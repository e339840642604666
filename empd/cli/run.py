"""`empd run`: the daemon. Every setting is a flag, made from the table of settings."""

from __future__ import annotations

import sys
from typing import Any

import click

from empd import __version__
from empd.loading import load
from empd.mapping import Mapping
from empd.settings import SETTINGS, Setting, Settings


def _option(row: Setting) -> click.Option:
    accepts = "" if "\n" in row.accepted or len(row.accepted) > 90 else f" Takes {row.accepted}."
    is_switch = isinstance(row.default, bool)
    default = row.default_text.lower() if is_switch else row.default_text
    return click.Option(
        [row.flag, row.name],
        metavar="VALUE",
        # A switch may stand alone, as the journal's advice writes `--accept-loss`.
        flag_value="true" if is_switch else None,
        is_flag=False,
        help=f"{row.help}{accepts}  [default: {default or 'none'}]",
    )


def setting_options() -> list[click.Option]:
    """One option for each setting."""
    return [_option(row) for row in SETTINGS.values()]


def run_daemon(**flags: str | None) -> int:
    """Runs the daemon until it is told to stop."""
    # Entered here only: `empd run --help` needs no supervisor.
    from empd.supervisor.process import run as supervise

    def configured() -> tuple[Settings, Mapping]:
        settings = load(flags)
        return settings, Mapping.load(settings.mapping)

    settings, mapping = configured()
    print(_announcement(settings), file=sys.stderr, flush=True)
    return supervise(settings, mapping, configured)


def _announcement(settings: Settings) -> str:
    host, port = settings.http_address
    page = f"http://{host}:{port}/" if port else f"a free port of {host} (in {settings.runtime_dir}/http)"
    return (
        f"empd {__version__}: clients at {settings.clients_endpoint}, page at {page}, state in {settings.state_dir}; "
        "Ctrl-C drains and stops"
    )


run: click.Command = click.Command(
    "run",
    callback=run_daemon,
    params=[*setting_options()],
    help="Run the daemon in the foreground until SIGTERM or Ctrl-C (drain and stop; a second one stops at once). "
    "SIGHUP reloads.\n\nEvery setting is a key in the file, an EMPD_ variable and a flag here; the later wins.",
)


def settings_from(given: dict[str, Any]) -> Settings:
    """The settings for a command that takes `config` and `state_dir`."""
    return load({name: value for name, value in given.items() if value is not None})
