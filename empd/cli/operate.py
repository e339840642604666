"""`empd drain`, `empd resume`, `empd reload`."""

from __future__ import annotations

import threading
import time
from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.commands import closest
from empd.cli.status import told_by_supervisor, worker_children
from empd.client import Client
from empd.errors import ConfigError, ResultTimeout

POLL_S = 0.2
RELOAD_ANSWER_S = 10.0
"""Reading the configuration takes milliseconds, asking for GPUs anew some seconds."""
EVERYONE = "*"

_workers = click.argument("workers", metavar="[WORKER]...", nargs=-1)


def _known(client: Client, workers: tuple[str, ...]) -> None:
    # Those too that are just down: a worker that crashes again and again is what somebody would drain.
    names = sorted(
        {worker["name"] for worker in client.status()["workers"]}
        | {*worker_children(told_by_supervisor(client.endpoint))}
    )
    for name in workers:
        if name not in names:
            raise click.UsageError(f"no worker {name!r}{closest(name, names)}; known: {', '.join(names) or 'none'}")


def _tell(client: Client, drained: list[str], json_output: bool) -> None:
    held = sum(worker["held"] for worker in client.status()["workers"])
    if json_output:
        output.print_json({"drained": drained, "held": held})
    elif not drained:
        print("no worker is drained")
    else:
        names = "all workers" if EVERYONE in drained else ", ".join(drained)
        print(f"drained: {names}; {held} jobs still run")


@click.command()
@_workers
@click.option("--wait", "-w", is_flag=True, help="Until nothing runs there any more.")
@click.option("--wait-timeout", type=click.FloatRange(min=0), help="Wait at most so many seconds (exit code 5).")
@options.endpoint
@options.as_json
def drain(
    workers: tuple[str, ...], wait: bool, wait_timeout: float | None, endpoint: str | None, json_output: bool
) -> int:
    """Let workers (all, if none is named) finish what they run and take nothing new. Jobs are still accepted."""
    with options.connect(endpoint) as client:
        _known(client, workers)
        drained = client.operate("drain", workers)["drained"]
        if wait or wait_timeout is not None:
            _until_idle(client, workers, wait_timeout)
        _tell(client, drained, json_output)
    return ExitCode.OK


def _until_idle(client: Client, workers: tuple[str, ...], timeout_s: float | None) -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause = threading.Event()
    while any(worker["held"] for worker in client.status()["workers"] if not workers or worker["name"] in workers):
        if deadline is not None and time.monotonic() >= deadline:
            raise ResultTimeout(f"jobs still run after {timeout_s} s; they go on, nothing new is taken")
        pause.wait(POLL_S)


@click.command()
@_workers
@options.endpoint
@options.as_json
def resume(workers: tuple[str, ...], endpoint: str | None, json_output: bool) -> int:
    """Let drained workers (all, if none is named) take jobs again."""
    with options.connect(endpoint) as client:
        _known(client, workers)
        _tell(client, client.operate("resume", workers)["drained"], json_output)
    return ExitCode.OK


@click.command()
@click.option("--wait", "-w", is_flag=True, help="Until the last worker is replaced.")
@options.endpoint
@options.as_json
def reload(wait: bool, endpoint: str | None, json_output: bool) -> int:
    """Read the configuration again; workers are replaced one by one, after their jobs. Exit code 2, and nothing
    changes, when it has mistakes."""
    with options.connect(endpoint) as client:
        before = _last_reload(client.endpoint)
        client.operate("reload")
        found = _outcome(client.endpoint, before, wait) if before else {}
    state, problems = found.get("state", "asked"), found.get("problems") or []
    if json_output:
        output.print_json({"reload": state, "problems": problems})
    elif problems:
        raise ConfigError([f"not reloaded: {problem}" for problem in problems])
    else:
        print(_RELOAD_WORDS[state])
    return ExitCode.USAGE if problems else ExitCode.OK


_RELOAD_WORDS = {
    "asked": "reload asked; `empd status` shows the workers' new pids, the daemon's log any problem",
    "running": "the configuration is in force; workers are replaced one by one (--wait waits for the last)",
    "done": "reloaded",
}


def _last_reload(endpoint: str) -> dict[str, Any]:
    """What the supervisor says of its last reload; empty of a remote one."""
    found: dict[str, Any] = (told_by_supervisor(endpoint) or {}).get("reload") or {}
    return found


def _outcome(endpoint: str, before: dict[str, Any], wait: bool) -> dict[str, Any]:
    """What became of the reload after `before`, as far as it has come: to its end with `wait`."""
    pause = threading.Event()
    deadline = time.monotonic() + RELOAD_ANSWER_S
    while True:
        found = _last_reload(endpoint)
        is_told = found.get("number", 0) > before["number"]
        if is_told and not (wait and found["state"] == "running"):
            return found
        if not is_told and time.monotonic() >= deadline:
            return {}
        pause.wait(POLL_S)
