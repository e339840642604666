"""`empd submit`."""

from __future__ import annotations

import datetime
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.commands import closest
from empd.cli.page import Page
from empd.client import Client, JobHandle, JobSet
from empd.errors import EmpdError, FailureClass, JobFailed, Refused, ResultTimeout
from empd.job import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN

POLL_S = 0.1
_SECONDS = click.FloatRange(min=0)


@click.command()
@click.argument("service")
@click.argument("payload", required=False)
@click.option("--file", "-f", "file", type=click.Path(path_type=Path), help="The file's bytes are the payload.")
@click.option(
    "--priority",
    type=click.IntRange(PRIORITY_MIN, PRIORITY_MAX),
    help=f"Higher goes first.  [default: {PRIORITY_DEFAULT}]",
)
@click.option("--timeout", "timeout_s", type=_SECONDS, help="Limit of one run, in seconds.")
@click.option("--queue-timeout", "queue_timeout_s", type=_SECONDS, help="Limit of waiting, in seconds.")
@click.option("--total-timeout", "total_timeout_s", type=_SECONDS, help="Limit from submit to end, in seconds.")
@click.option("--retries", type=click.IntRange(min=0), help="Further attempts after a fault of the job.")
@click.option("--not-before", metavar="TIME", help="Unix seconds, ISO 8601, or +SECONDS from now.")
@click.option("--after", multiple=True, type=options.JobId(), help="A job that must end first; may be repeated.")
@click.option("--key", "idempotency_key", metavar="TEXT", help="Idempotency key: the same key is the same job.")
@click.option("--require", "requirements", multiple=True, type=options.Pair(decode=True), help="Of the worker.")
@click.option("--model", "model_keys", multiple=True, metavar="NAME", help="Best where it is loaded; may be repeated.")
@click.option("--label", "labels", multiple=True, type=options.Pair(), help="For filters; may be repeated.")
@click.option("--customer", "customer_id", metavar="ID")
@click.option("--workflow", "workflow_id", metavar="ID")
@click.option("--count", type=click.IntRange(1, 1_000_000), default=1, help="So many jobs with this payload.")
@click.option("--wait", "-w", is_flag=True, help="Wait for the end; print the result.")
@click.option("--wait-timeout", type=_SECONDS, help="Wait at most so many seconds (exit code 5).")
@click.option("--output", "-o", "target", type=click.Path(path_type=Path), help="Write the result there.")
@options.endpoint
@options.as_json
def submit(service: str, payload: str | None, **given: Any) -> int:
    """Submit a job to SERVICE and print its id once it is safe.

    PAYLOAD is JSON (`'{"x": 3}'`), or `-` for JSON from standard input; left out, it is null. With --file the
    payload is the file's bytes as they are.
    """
    value = _payload(payload, given.pop("file"))
    how = {name: given.pop(name) for name in ("count", "wait", "wait_timeout", "target", "json_output")}
    wait = how["wait"] or how["wait_timeout"] is not None or how["target"] is not None
    if how["target"] is not None and how["count"] > 1:
        raise click.UsageError("--output takes the result of one job; leave out --count")
    with options.connect(given.pop("endpoint")) as client:
        try:
            if how["count"] > 1:
                return _many(client, service, value, _options(given), how | {"wait": wait})
            handle = client.submit(service, value, **_options(given))
            if not handle.accepted(30.0):
                handle.result(0)
        except Refused as error:
            raise _explained(client, service, error) from None
        return _wait_one(handle, how) if wait else _announce(handle, how["json_output"])


def _payload(text: str | None, file: Path | None) -> Any:
    if file is not None:
        if text is not None:
            raise click.UsageError("give PAYLOAD or --file, not both")
        return file.read_bytes()
    if text is None:
        return None
    source = "standard input" if text == "-" else "PAYLOAD"
    text = sys.stdin.read() if text == "-" else text
    try:
        return json.loads(text)
    except ValueError as error:
        hint = f"a string is written {json.dumps(text)!r}, bytes come from --file"
        raise click.UsageError(f"{source} is not JSON ({error}); {hint}") from None


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `Client.submit`: those that were given."""
    found = {name: value for name, value in given.items() if value not in (None, ())}
    for name in ("labels", "requirements"):
        if name in found:
            found[name] = dict(found[name])
    if "not_before" in found:
        found["not_before"] = _moment(found["not_before"])
    return found


def _moment(text: str) -> float:
    try:
        if text.startswith("+"):
            return time.time() + float(text[1:])
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.UsageError(f"--not-before {text!r} is none of: Unix seconds, ISO 8601, +SECONDS") from None


def _explained(client: Client, service: str, error: Refused) -> Refused:
    """The refusal; for a service that does not exist, with the nearest one that does."""
    if error.failure is not FailureClass.UNMATCHABLE:
        return error
    known = [name for name in client.status().get("services", {}) if name != service]
    return Refused(error.failure, error.reason + closest(service, known))


def _announce(handle: JobHandle, json_output: bool) -> int:
    if json_output:
        output.print_json({"id": handle.id, "state": handle.state})
    else:
        print(handle.id)
    return ExitCode.OK


# --- one job -----------------------------------------------------------------------------------------------------


def _wait_one(handle: JobHandle, how: dict[str, Any]) -> int:
    quiet = how["json_output"] or not sys.stderr.isatty()
    error = _watch(handle, how["wait_timeout"], quiet)
    if how["json_output"]:
        document = output.status_document(handle.status())
        output.print_json(document | {"result": None if error else handle.result(0)})
        return ExitCode.FAILED if error else ExitCode.OK
    if error is not None:
        if isinstance(error, JobFailed) and error.evidence:
            print(output.some_lines(error.evidence, f"empd job {handle.id}"), file=sys.stderr)
        raise error
    write_result(handle.result(0), how["target"])
    return ExitCode.OK


def write_result(result: Any, target: Path | None) -> None:
    """Bytes as they are, all else as JSON; to a file, or to standard output."""
    if isinstance(result, bytes):
        if target is not None:
            target.write_bytes(result)
        elif sys.stdout.isatty():
            print(f"{len(result)} bytes; write them with --output FILE")
        else:
            sys.stdout.buffer.write(result)
    elif target is not None:
        target.write_text(json.dumps(result, ensure_ascii=False) + "\n")
    else:
        output.print_json(result)


def _watch(handle: JobHandle, timeout_s: float | None, quiet: bool) -> EmpdError | None:
    """Waits for the end with a progress bar; the failure, if it is one."""
    if quiet:
        return handle.exception(timeout_s)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    told = Told(handle)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, console=output.console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"job {handle.id}", total=None, said="")

        def show() -> None:
            progress.update(task, total=1.0 if told.fraction else None, completed=told.fraction, said=told.said)

        return wait_showing(handle, timeout_s, show)


def wait_showing(handle: JobHandle, timeout_s: float | None, show: Callable[[], None]) -> EmpdError | None:
    """`handle.exception`, calling `show` several times a second. Raises ResultTimeout."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
        try:
            return handle.exception(max(left, 0.0))
        except ResultTimeout:
            if deadline is not None and time.monotonic() >= deadline:
                raise ResultTimeout(f"job {handle.id} did not end within {timeout_s} s; it goes on") from None
        show()


class Told:
    """What the job's events say of its progress, read by a thread of its own; nothing where there is no page."""

    def __init__(self, handle: JobHandle) -> None:
        self.fraction = 0.0
        self.said = ""
        client: Client = handle.owner
        self._place = (client.endpoint, f"/v1/jobs/{handle.id}/events")
        threading.Thread(target=self._listen, name="empd-progress", daemon=True).start()

    def _listen(self) -> None:
        endpoint, path = self._place
        try:
            for event in Page(endpoint).events(path):
                if event.get("event") == "progress":
                    self.fraction = float(event.get("fraction") or 0.0)
                    self.said = str(event.get("message") or "")
                else:
                    self.said = str(event.get("reason") or event.get("state") or event.get("event") or "")
        except EmpdError:
            self.said = ""  # progress is an extra: the result comes without it


# --- many --------------------------------------------------------------------------------------------------------


def _many(client: Client, service: str, value: Any, given: dict[str, Any], how: dict[str, Any]) -> int:
    if "idempotency_key" in given:
        raise click.UsageError("--key names one job; leave out --count")
    started = time.monotonic()
    jobs = client.submit_many(service, (value for _ in range(how["count"])), **given)
    client.flush()
    refused = next((handle.error for handle in jobs if isinstance(handle.error, Refused)), None)
    if refused is not None:
        raise refused
    if not how["wait"]:
        ids = [handle.id for handle in jobs]
        if how["json_output"]:
            output.print_json({"ids": ids})
        else:
            print("\n".join(ids))
        return ExitCode.OK
    return _wait_many(jobs, how, started)


def _wait_many(jobs: JobSet, how: dict[str, Any], started: float) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    ends: dict[str, int] = {}
    first_failure: EmpdError | None = None
    columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    quiet = how["json_output"] or not sys.stderr.isatty()
    console = output.console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("jobs", total=len(jobs), rate="")
        for handle in jobs.as_completed(how["wait_timeout"]):
            ends[handle.state] = ends.get(handle.state, 0) + 1
            first_failure = first_failure or handle.failure()
            rate = sum(ends.values()) / max(time.monotonic() - started, 1e-9)
            progress.update(task, advance=1, rate=f"{rate:,.0f}/s")
    took_s = time.monotonic() - started
    if how["json_output"]:
        output.print_json({"jobs": len(jobs), "ends": ends, "seconds": round(took_s, 3)})
    else:
        summary = ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))
        print(f"{summary} in {output.duration(took_s)} ({len(jobs) / max(took_s, 1e-9):,.0f} jobs/s)")
        if first_failure is not None:
            print(f"the first that failed: {first_failure}", file=sys.stderr)
    return ExitCode.OK if ends.get("completed") == len(jobs) else ExitCode.FAILED
