"""What the handlers share: one object, made by the process, put into the application under `CONTEXT`."""

from __future__ import annotations

import dataclasses
from typing import Any

from aiohttp import web

from empd.memory.arena import Arena
from empd.memory.board import Board
from empd.web.archive import Archive
from empd.web.events import Feed, Hub
from empd.web.facts import Facts
from empd.web.gateway import Gateway
from empd.web.joblog import JobLogs
from empd.web.metrics import Metrics


@dataclasses.dataclass
class Context:
    """The web process's parts. `draining` is set when it is asked to go."""

    settings: Any  # empd.settings.Settings
    mapping: Any  # empd.mapping.Mapping
    gateway: Gateway
    archive: Archive
    arena: Arena
    board: Board
    hub: Hub
    feed: Feed
    logs: JobLogs
    metrics: Metrics
    facts: Facts = dataclasses.field(default_factory=Facts)
    draining: bool = False


CONTEXT = web.AppKey("context", Context)


def of(request: web.Request) -> Context:
    """The context of the application that serves this request."""
    return request.app[CONTEXT]
