"""`empd cancel`, `empd retry`: jobs by id or by filter."""

from __future__ import annotations

from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.client import Client
from empd.errors import Refused

_ids = click.argument("job_ids", metavar="[ID]...", nargs=-1, type=options.JobId())


def _selection(ids: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    wanted = options.selected(given)
    if bool(ids) == bool(wanted):
        raise click.UsageError("name jobs by id, or give filters such as --service NAME" + (", not both" * bool(ids)))
    return wanted


def _tell(client: Client, answer: dict[str, list[str]], missed: str, json_output: bool) -> int:
    """Prints what became of the jobs. Those under `missed` could not be helped: what they are is asked for."""
    if json_output:
        output.print_json(answer)
    else:
        for name, found in answer.items():
            for job_id in found:
                print(f"{job_id}  {_is(client, job_id) if name == missed else name.replace('_', ' ')}")
        if not any(answer.values()):
            print("no job fits")
    return ExitCode.FAILED if answer.get(missed) else ExitCode.OK


def _is(client: Client, job_id: str) -> str:
    """What a job is that a command could do nothing for."""
    try:
        state = client.job(job_id).status().state
    except Refused as error:
        return error.reason
    return f"nothing to do: it is {output.state_name(state)}"


@click.command()
@_ids
@options.filters(options.UNFINISHED)
@options.dry_run
@options.endpoint
@options.as_json
def cancel(job_ids: tuple[str, ...], dry_run: bool, endpoint: str | None, json_output: bool, **given: Any) -> int:
    """Stop jobs. A running one is `cancelling` until its work has stopped. Exit code 1 when an id has ended already."""
    wanted = _selection(job_ids, given)
    with options.connect(endpoint) as client:
        return _tell(client, client.cancel(job_ids, dry_run=dry_run, **wanted), "unknown", json_output)


@click.command()
@_ids
@options.filters(options.DEAD)
@options.dry_run
@options.endpoint
@options.as_json
def retry(job_ids: tuple[str, ...], dry_run: bool, endpoint: str | None, json_output: bool, **given: Any) -> int:
    """Give dead-lettered jobs another chance. Exit code 1 when one of the ids is not dead-lettered."""
    wanted = _selection(job_ids, given)
    with options.connect(endpoint) as client:
        return _tell(client, client.retry(job_ids, dry_run=dry_run, **wanted), "not_dead", json_output)
