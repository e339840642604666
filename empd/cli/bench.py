"""`empd bench`: measures, compares, and makes the page."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from empd.bench.run import SERVICE, Plan, run
from empd.bench.scenarios import SCENARIOS
from empd.cli import options, output
from empd.cli.codes import ExitCode

if TYPE_CHECKING:
    from empd.bench.compare import Comparison

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

scenario_option = click.option(
    "-s",
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(SCENARIOS)),
    help="Only this one; may be repeated.  [default: all; `--list` names them]",
)
quick_option = click.option("--quick", is_flag=True, help="Small sizes: shows that all works; figures count for less.")
place_option = click.option(
    "--place",
    default=Plan().place,
    show_default=True,
    type=click.Path(exists=True, file_okay=False, writable=True),
    help="Directory for the daemons' state; its disk is the one that is measured.",
)


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:<12} {scenario.help}")
        context.exit()


@click.group(invoke_without_command=True)
@scenario_option
@click.option("--endpoint", metavar="URL", help="Measure the daemon there, and not one of the bench's own.")
@click.option("--service", default=SERVICE, show_default=True, help="With --endpoint: its service that does nothing.")
@quick_option
@click.option("--runs", type=click.IntRange(1), metavar="N", help="Runs of each figure.  [default: the scenario's]")
@click.option("--matrix", is_flag=True, help="Throughput in all 81 combinations of its axes: half an hour more.")
@click.option("--json", "json_file", type=click.File("w", lazy=False), help="Write JSON lines here; `-`: to stdout.")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Write plots and a page of HTML here.")
@place_option
@click.option("--strict", is_flag=True, help="Exit with 1 when a bound is missed.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Name the scenarios.")
@click.pass_context
def bench(context: click.Context, /, **given: Any) -> int:
    """Measure daemons of this command's own, or a running one; each figure beside its bound.

    All scenarios take about 20 minutes, with --quick 3; -s takes some of them. Close what else runs. Lines say how and
    where they were measured, so that files can be compared later; what is measured when it is interrupted is shown.
    """
    if context.invoked_subcommand is not None:
        return ExitCode.OK
    json_file: IO[str] | None = given.pop("json_file")
    report: Path | None = given.pop("report")
    strict: bool = given.pop("strict")
    plan = _plan(**given)
    if report is not None:
        _check_report(report)
    lines: list[dict[str, Any]] = []
    try:
        with _ended_by_signals():
            for line in run(plan, lambda scenario: _progress(f"{scenario.name}: {scenario.help}")):
                lines.append(line)
                if json_file is not None:
                    print(msgspec.json.encode(line).decode(), file=json_file, flush=True)
    finally:  # one that fails, or is interrupted, takes nothing with it that was measured before
        if lines:
            _show(lines, stderr=json_file is not None and json_file.name == "<stdout>")
        if lines and report is not None:
            _write_report(lines, report)
    return ExitCode.FAILED if strict and any(line["verdict"] == "missed" for line in lines) else ExitCode.OK


def _plan(endpoint: str | None, runs: int | None, **given: Any) -> Plan:
    if endpoint is not None and not endpoint.startswith("ipc://"):
        raise click.UsageError(f"{endpoint!r} is not a local endpoint (ipc://PATH): its processes are measured too")
    return Plan(endpoint=endpoint or "", runs=runs or 0, **given)


@bench.command()
@click.argument("names", nargs=2, metavar="A B")
@click.option("--commits", is_flag=True, help="A and B are commits: both are measured now, by turns.")
@scenario_option
@quick_option
@click.option("--pairs", default=6, show_default=True, help="With --commits: pairs of runs; 6 give a 95 % interval.")
@place_option
@options.as_json
def compare(names: tuple[str, str], commits: bool, pairs: int, json_output: bool, **given: Any) -> int:
    """Compare two files of `--json`, or two commits: the ratio B / A of each figure, with its interval.

    The verdict on B is `better`, `worse`, `same` (differences above 3 % are excluded) or `not shown` (the noise is
    larger than the difference). For commits the interval is that of the sign test on the pairs' ratios; for files that
    of the rank sum of both runs, which does not know what changed on the machine between them, and has none for
    percentiles of all samples: these are left out. Exit code 1 when any is worse.
    """
    from empd.bench import compare as comparing

    if commits:
        plan = Plan(runs=1, **given)
        with _ended_by_signals():
            runs = comparing.commits(names, plan, pairs, lambda number, name: _progress(f"pair {number}: {name}"))
        found = comparing.pairs(runs)
    else:
        before, after = (comparing.read(Path(name)) for name in names)
        found = comparing.files(before, after)
    if given["scenarios"] and not commits:
        wanted = {name for name, line in before.items() if line["scenario"] in given["scenarios"]}
        found = [one for one in found if one.name in wanted]
    if json_output:
        output.print_json([{**one._asdict(), "ratio": one.ratio._asdict()} for one in found])
    else:
        _show_comparisons(found)
        differences = [] if commits else comparing.differences(before, after)
        print("\n".join([f"A: {names[0]}, B: {names[1]}", *differences]))
    return ExitCode.FAILED if any(one.verdict == "worse" for one in found) else ExitCode.OK


@bench.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--into", required=True, type=click.Path(file_okay=False, path_type=Path), help="The directory to write.")
def report(files: tuple[Path, ...], into: Path) -> None:
    """Make plots and a page of HTML from files of `--json`; of several with one figure the last counts."""
    from empd.bench.compare import read

    lines: dict[str, dict[str, Any]] = {}
    for file in files:
        lines |= read(file)
    _write_report(list(lines.values()), into)


def _check_report(into: Path) -> None:
    from empd.bench.report import check

    check(into)


def _write_report(lines: list[dict[str, Any]], into: Path) -> None:
    from empd.bench.report import write

    print(f"the page is {write(lines, into)}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A bench that is told to end takes its daemons with it, as on Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _progress(text: str) -> None:
    output.console(stderr=True).print(text, style="dim")


def _show(lines: list[dict[str, Any]], stderr: bool) -> None:
    from empd.bench.figures import shown

    rows = [
        (
            line["name"],
            f"{shown(line['value'])} {line['unit']}",
            shown(line["min"]),
            shown(line["max"]),
            str(line["runs"]),
            line["bound"] or "",
            line["verdict"] or "",
        )
        for line in lines
    ]
    columns = ("figure", ">value", ">min", ">max", ">runs", ">bound", "verdict")
    output.console(stderr).print(output.table(columns, rows))


def _show_comparisons(found: list[Comparison]) -> None:
    from empd.bench.figures import shown

    rows = [
        (
            one.name,
            f"{shown(one.before)} {one.unit}",
            f"{shown(one.after)} {one.unit}",
            f"{one.ratio.value:.3f}",
            f"{one.ratio.low:.3f} to {one.ratio.high:.3f} ({one.ratio.coverage:.0%})",
            one.verdict,
        )
        for one in found
    ]
    output.print_table(("figure", ">A", ">B", ">B / A", "interval", "B is"), rows)
    if found:
        print(f"intervals: {found[0].ratio.method}")
