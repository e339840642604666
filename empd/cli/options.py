"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from empd import job
from empd.client import Client
from empd.client.endpoint import find_endpoint, is_up
from empd.errors import NotRunning

Command = TypeVar("Command", bound=Callable[..., Any])

as_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON document.")
endpoint = click.option("--endpoint", metavar="URL", help="The daemon's endpoint.  [default: the local daemon's]")
STARTING_S = 60.0

dry_run = click.option("--dry-run", is_flag=True, help="Only tell which jobs it would be.")

DEAD = ("dead_lettered", "dead")
"""Two names of one state; the second is that of the wire."""
UNFINISHED = (*(state.name.lower() for state in job.State if state is not job.State.DEAD), *DEAD)
ENDED = tuple(outcome.label for outcome in job.Outcome if outcome is not job.Outcome.DEAD)


class JobId(click.ParamType):  # type: ignore[type-arg]
    """A job's id, as `submit` prints it."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The id as it is written. Fails with what is wrong."""
        try:
            return job.format_id(job.parse_id(str(value).strip()))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Pair(click.ParamType):  # type: ignore[type-arg]
    """`NAME=VALUE`. With `decode`, a value that is JSON is taken as such (`16`, `true`, `["a"]`)."""

    name = "name=value"

    def __init__(self, decode: bool = False) -> None:
        self._decode = decode

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """(name, value)."""
        name, sign, text = str(value).partition("=")
        if not sign or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        if not self._decode:
            return name, text
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


def filters(states: tuple[str, ...]) -> Callable[[Command], Command]:
    """The options that select jobs; a command gets them as keyword arguments, see `selected`."""
    options = [
        click.option("--service", metavar="NAME", help="Of this service."),
        click.option(
            "--state", "states", multiple=True, type=click.Choice(states), help="In this state; may be repeated."
        ),
        click.option("--customer", "customer_id", metavar="ID", help="Of this customer."),
        click.option("--workflow", "workflow_id", metavar="ID", help="Of this workflow."),
        click.option("--label", "labels", multiple=True, type=Pair(), help="With this label; may be repeated."),
        click.option("--worker", metavar="NAME", help="Held by this worker."),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def selected(given: dict[str, Any]) -> dict[str, Any]:
    """The filters that were given, as fields of JobFilter."""
    names = ("service", "states", "customer_id", "workflow_id", "labels", "worker")
    found = {name: given[name] for name in names if given.get(name)}
    if "states" in found:
        found["states"] = ["dead" if state in DEAD else state for state in found["states"]]
    if "labels" in found:
        found["labels"] = dict(found["labels"])
    return found


def connect(endpoint: str | None, connect_timeout_s: float = 3.0) -> Client:
    """A client of the daemon that is meant. Raises NotRunning, and ConfigError for what is no endpoint."""
    found = find_endpoint(endpoint)
    try:
        return Client(found, connect_timeout_s=connect_timeout_s, name="empd cli")
    except NotRunning:
        if not is_up(found):
            raise
    # Its broker starts, or is replaced by a reload: it answers when it has read its journal.
    return Client(found, connect_timeout_s=STARTING_S, name="empd cli")
