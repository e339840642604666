"""`empd job`, `empd jobs`, `empd dead`: what is known of jobs."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.page import Page
from empd.cli.submit import write_result
from empd.job import format_id
from empd.result import JobStatus

_COLUMNS = ("id", "state", "service", ">prio", ">tries", "worker", "age", "why")


@click.command()
@click.argument("job_id", metavar="ID", type=options.JobId())
@click.option("--result", "only_result", is_flag=True, help="Print only the result (bytes as they are).")
@options.endpoint
@options.as_json
def job(job_id: str, only_result: bool, endpoint: str | None, json_output: bool) -> int:
    """Show one job: its state, and its result or failure once it has ended. Exit code 1 when it failed."""
    with options.connect(endpoint) as client:
        handle = client.job(job_id)
        status = handle.status()
        failed = handle.ended and handle.failure() is not None
        result = handle.result(0) if handle.ended and not failed else None
        if only_result:
            write_result(handle.result(0), None)
        elif json_output:
            output.print_json(output.status_document(status) | {"result": result})
        else:
            _show(status)
            if handle.ended and not failed:
                print("result:")
                write_result(result, None)
    return ExitCode.FAILED if failed else ExitCode.OK


def _show(status: JobStatus) -> None:
    document = output.status_document(status)
    error = document.pop("error")
    for name, value in document.items():
        if value not in (None, "", {}):
            print(f"{name + ':':<14}{_flat(value)}")
    if error is not None:
        print(f"{'error:':<14}{error['failure']}: {error['message']}")
        if error["evidence"]:
            print(_indented(error["evidence"].splitlines()))


def _flat(value: Any) -> str:
    return ", ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


@click.command()
@options.filters((*options.UNFINISHED, *options.ENDED))
@click.option("--all", "everything", is_flag=True, help="Ended jobs too.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@options.endpoint
@options.as_json
def jobs(everything: bool, limit: int, endpoint: str | None, json_output: bool, **given: Any) -> None:
    """List unfinished and dead-lettered jobs; with --all or the state of an end, those in history too."""
    wanted = options.selected(given)
    with options.connect(endpoint) as client:
        if everything or set(wanted.get("states", ())) & set(options.ENDED):
            rows = _from_history(Page(client.endpoint), wanted, limit)
        else:
            found = client.jobs(**wanted, limit=min(limit, 1000))
            rows = [output.status_document(status) for status in islice(found, limit)]
    if json_output:
        output.print_json({"jobs": rows})
        return
    if not rows:
        print("no such jobs" if everything or wanted else "no unfinished jobs; --all lists those that ended too")
        return
    output.print_table(_COLUMNS, map(_row, rows))
    if len(rows) == limit:
        print(f"the first {limit}; --limit shows more")


def _from_history(page: Page, wanted: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    query = {name: value for name, value in wanted.items() if name not in ("states", "labels")}
    query |= {f"label.{name}": value for name, value in wanted.get("labels", {}).items()}
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(rows) < limit:
        size = min(limit - len(rows), 1000)
        answer = page.get("/v1/jobs", **query, state=wanted.get("states"), limit=size, cursor=cursor)
        rows += answer["jobs"]
        cursor = answer.get("cursor")
        if cursor is None:
            break
    return rows[:limit]


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    error = row.get("error") or {}
    why = row.get("reason") or (f"{error['failure']}: {error['message']}" if error else "")
    return (
        row["id"],
        row["state"],
        row["service"],
        str(row["priority"]),
        str(row["attempts"]),
        row.get("worker") or "",
        output.age(output.wall_ns(row["submitted_at"])),
        why,
    )


@click.command()
@click.argument("job_id", metavar="[ID]", type=options.JobId(), required=False)
@click.option("--service", metavar="NAME", help="Of this service.")
@click.option("--customer", "customer_id", metavar="ID", help="Of this customer.")
@click.option("--full", is_flag=True, help="All evidence, not only its last lines.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@options.endpoint
@options.as_json
def dead(job_id: str | None, full: bool, limit: int, endpoint: str | None, json_output: bool, **given: Any) -> None:
    """List dead-lettered jobs with their evidence. `empd retry` gives them another chance."""
    with options.connect(endpoint) as client:
        if job_id is not None:
            status = client.job(job_id).status()
            if status.state not in options.DEAD:
                raise click.UsageError(f"job {job_id} is not dead-lettered, it is {status.state}")
            found = [status]
        else:
            found = list(islice(client.jobs(states=["dead"], **options.selected(given)), limit))
    if json_output:
        output.print_json({"jobs": [output.status_document(status) for status in found]})
        return
    for status in found:
        _show_dead(status, full or job_id is not None)
    print(f"{len(found)} dead-lettered" + ("; `empd retry ID` gives one another chance" if found else ""))


def _show_dead(status: JobStatus, full: bool) -> None:
    error = status.error
    said = f"{error.failure}: {error.message}" if error else "no reason was kept"
    print(f"{format_id(status.id)}  {status.service}  after {status.attempts} attempts  {said}")
    if error is not None and error.evidence:
        text = error.evidence if full else output.some_lines(error.evidence, "--full")
        print(_indented(text.splitlines()))
