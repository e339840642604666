"""`python -m empd.bench [NAME …]`: measures, one JSON line a figure on stdout, a table on stderr."""

from __future__ import annotations

import signal
import sys

import click

from empd.bench import floors, machine, report
from empd.bench.daemon import PLACE
from empd.bench.figures import Figure
from empd.bench.scenarios import SCENARIOS
from empd.errors import EmpdError

FLOOR_ROUNDS, FLOOR_ROUNDS_QUICK = 5000, 500


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        for scenario in SCENARIOS.values():
            click.echo(f"{scenario.name:<12} {scenario.help}")
        context.exit()


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)), metavar="[NAME]...")
@click.option("--quick", is_flag=True, help="Small sizes: shows that all works; its figures count for little.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a target is missed.")
@click.option(
    "--place",
    default=PLACE,
    show_default=True,
    type=click.Path(exists=True, file_okay=False, writable=True),
    help="Directory for the daemons' state; its disk is the one that is measured.",
)
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Name the scenarios.")
def bench(names: tuple[str, ...], quick: bool, strict: bool, place: str) -> int:
    """Measure daemons of this command's own: the NAMED scenarios, or all."""
    where = machine.describe(place)
    figures: list[Figure] = []

    def take(figure: Figure) -> None:
        figures.append(figure)
        report.write_line(figure, where)

    report.progress("floors: what the machine itself can do")
    for figure in floors.measure(FLOOR_ROUNDS_QUICK if quick else FLOOR_ROUNDS, place):
        take(figure)
    for name in names or SCENARIOS:
        scenario = SCENARIOS[name]
        report.progress(f"{name}: {scenario.help}")
        for figure in scenario.measure(scenario.quick if quick else scenario.full, place):
            take(figure)
    report.write_table(figures, where)
    return int(strict and any(figure.met is False for figure in figures))


def main() -> None:
    """The module's command line."""
    # A bench that is told to end takes its daemons with it, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(bench.main(prog_name="python -m empd.bench", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except EmpdError as error:
        sys.stderr.write(f"empd.bench: {error}\n")
        sys.exit(1)
