"""What the kit says and is told: a case, what a check found, and how a check ends early."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from empd.connectors.base import Service
from empd.connectors.conformance.gate import Recorded


class Outcome(enum.StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CLAIMED = "not claimed"


class Finding(NamedTuple):
    """One check's result: `seen` is what was seen, or why nothing was to be proved."""

    check: str
    outcome: Outcome
    seen: str
    reason: str


class Failed(Exception):
    """The connector does not do what it claims; the text says what was seen."""


class NotClaimed(Exception):
    """There is nothing to prove; the text says why."""


class Server(NamedTuple):
    """The service that a connector is checked against. `executions`: how much work it has begun, where it counts."""

    url: str = ""
    executions: Callable[[], int] | None = None


class _Nothing(enum.Enum):
    NOTHING = 0


NOTHING = _Nothing.NOTHING
"""No payload: nothing is submitted."""


def carried_key(request: Recorded) -> str:
    """The identity of a submission whose connector sends an idempotency key."""
    return next((value for name, value in request.headers.items() if "idempotency" in name.lower()), "")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A connector, and what is needed to prove it. The kit puts a gate between it and the server, which breaks things.

    `server` starts the service and stops it; without one only what needs none is checked. `payload` is a job that ends
    well within a second or two, `long_payload` one that takes at least 30 s, where the service has such work (left out,
    the gate holds an answer back). `submits` and `cancels` are patterns of the requests that submit and stop work
    (`"POST /jobs/*/cancel"`). `identity` names the upstream work that a request submits, `error_body` is a failure
    as the service tells it with status 200. `waived`: check → why it cannot be asked of this service.
    `ways`: how many calls of a kind of their own share the place of a submission, each with its tries.
    `transport`: `http`; `websocket`, where each message is a request (`"SEND job"`, by its `type`); `grpc`, where each
    call is one (`"CALL /package.Service/Method"`, the error body its bytes); or `tcp`, for what can only be broken off.
    """

    connector: type[Service]
    server: Callable[[], AbstractAsyncContextManager[Server]] | None = None
    api_config: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = NOTHING
    long_payload: Any = NOTHING
    submits: tuple[str, ...] = ()
    cancels: tuple[str, ...] = ()
    identity: Callable[[Recorded], str] | None = None
    error_body: Any = None
    waived: Mapping[str, str] = field(default_factory=dict)
    ways: int = 1
    transport: str = "http"
    isolation: str = ""
    python_path: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
