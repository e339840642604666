"""`empd version`."""

from __future__ import annotations

import platform

import click

from empd import __version__
from empd.cli import options, output


@click.command()
@options.as_json
def version(json_output: bool) -> None:
    """Print the version."""
    from empd.wire.frames import VERSION

    if json_output:
        output.print_json({"version": __version__, "protocol": VERSION, "python": platform.python_version()})
    else:
        print(f"empd {__version__} (protocol {VERSION}, Python {platform.python_version()})")
