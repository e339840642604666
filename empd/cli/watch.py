"""`empd watch`: one job until it ends, or the whole daemon live."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.page import Page
from empd.cli.status import picture, render
from empd.client import Client
from empd.errors import NotRunning
from empd.result import JobStatus

REFRESH_S = 0.5


@click.command()
@click.argument("job_id", metavar="[ID]", type=options.JobId(), required=False)
@options.endpoint
@click.option("--json", "json_output", is_flag=True, help="Print each event as a line of JSON.")
def watch(job_id: str | None, endpoint: str | None, json_output: bool) -> int:
    """Follow job ID until it ends (exit code 1 when it fails); without ID, show services and workers live."""
    with options.connect(endpoint) as client:
        if job_id is not None:
            return _one(client, job_id, json_output)
        if json_output or not sys.stdout.isatty():
            return _all_events(client, json_output)
        return _live(client)


def _one(client: Client, job_id: str, json_output: bool) -> int:
    handle = client.job(job_id)
    for event in _events(client, job_id):
        _print(event, json_output)
        if handle.done():
            break
    error = handle.exception(10.0)
    return ExitCode.OK if error is None else ExitCode.FAILED


def _events(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
    """From the page, with progress and logs; where there is none, the states that the broker tells."""
    try:
        yield from Page(client.endpoint).events(f"/v1/jobs/{job_id}/events")
    except NotRunning:
        for status in client.job(job_id).events():
            yield _as_event(status)


def _as_event(status: JobStatus) -> dict[str, Any]:
    document = output.status_document(status)
    return {"job": document["id"], "event": document["state"], **document}


def _all_events(client: Client, json_output: bool) -> int:
    for event in Page(client.endpoint).events("/v1/events"):
        _print(event, json_output)
    return ExitCode.OK


def _print(event: dict[str, Any], json_output: bool) -> None:
    if json_output:
        print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    said = _said(event)
    print(f"{event.get('at') or '':<25}{event.get('job', '')}  {event.get('event', ''):<14}{said}".rstrip(), flush=True)


def _said(event: dict[str, Any]) -> str:
    if event.get("event") == "progress":
        steps = f" ({event['step']}/{event['steps']})" if event.get("steps") else ""
        return f"{float(event.get('fraction') or 0):4.0%}{steps} {event.get('message') or ''}"
    if event.get("event") == "log":
        return str(event.get("text") or "").rstrip()
    error = event.get("error") or {}
    parts = [event.get("state") if event.get("event") == "state" else "", event.get("worker"), event.get("reason")]
    parts.append(f"{error['failure']}: {error['message']}" if error else "")
    return "  ".join(str(part) for part in parts if part)


def _live(client: Client) -> int:
    from rich.console import Group
    from rich.live import Live

    pause = threading.Event()
    with Live(console=output.console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(Group(*render(picture(client))), refresh=True)
            pause.wait(REFRESH_S)
