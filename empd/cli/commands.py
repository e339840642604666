"""The list of commands. A command's module is imported when it is used, so that `empd --help` is fast."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, NamedTuple

import click


class Entry(NamedTuple):
    """Where a command lives, and its line in `--help`."""

    place: str  # module:attribute
    help: str


COMMANDS: dict[str, Entry] = {
    "run": Entry("empd.cli.run:run", "Run the daemon in the foreground."),
    "demo": Entry("empd.cli.demo.command:demo", "Watch a daemon of its own lose nothing, killed twice."),
    "submit": Entry("empd.cli.submit:submit", "Submit jobs; with --wait, print the result."),
    "job": Entry("empd.cli.jobs:job", "Show one job, with its result or its failure."),
    "jobs": Entry("empd.cli.jobs:jobs", "List jobs."),
    "watch": Entry("empd.cli.watch:watch", "Follow a job until it ends, or all that happens."),
    "cancel": Entry("empd.cli.bulk:cancel", "Stop jobs, by id or by filter."),
    "retry": Entry("empd.cli.bulk:retry", "Give dead-lettered jobs another chance."),
    "dead": Entry("empd.cli.jobs:dead", "List dead-lettered jobs with their evidence."),
    "status": Entry("empd.cli.status:status", "Show services, workers and problems."),
    "drain": Entry("empd.cli.operate:drain", "Let workers finish and take nothing new."),
    "resume": Entry("empd.cli.operate:resume", "Let drained workers take jobs again."),
    "reload": Entry("empd.cli.operate:reload", "Read the configuration again, replacing workers one by one."),
    "config": Entry("empd.cli.config:config", "Check, show and describe the configuration."),
    "connectors": Entry("empd.cli.connectors:connectors", "List, show and prove connectors; begin a new one."),
    "journal": Entry("empd.cli.journal:journal", "Verify or export the journal."),
    "bench": Entry("empd.cli.bench:bench", "Measure the daemon, compare two runs, make a report."),
    "simulate": Entry("empd.cli.simulate:simulate", "Serve simulated services to try connectors on."),
    "version": Entry("empd.cli.version:version", "Print the version."),
}


def closest(word: str, known: list[str]) -> str:
    """`; did you mean …?`, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


class Suggesting(click.Group):
    """A group that tells the nearest name of a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names. Raises UsageError with the nearest one."""
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r}{closest(name, known)}", ctx)
        return super().resolve_command(ctx, args)


class Lazy(Suggesting):
    """The top: commands by name, loaded when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        found: Any = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])
