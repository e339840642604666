"""The OpenAPI 3.1 document, made from the table of routes and the types that requests are checked against."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from empd.errors import FailureClass
from empd.job import Outcome, State
from empd.web import render
from empd.web.problems import MEDIA_TYPE, Handler
from empd.web.release import version
from empd.web.submission import JobRequest

_PARAMETER = re.compile(r"{(\w+)}")
_COMPONENTS = "#/components/schemas/{name}"


class RouteLike(Protocol):
    """What the document needs of a row of the table."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def handler(self) -> Handler: ...
    @property
    def answers(self) -> dict[int, str]: ...
    @property
    def query(self) -> dict[str, str]: ...
    @property
    def takes(self) -> Any: ...
    @property
    def gives(self) -> str: ...


class Error(msgspec.Struct):
    """How a job failed."""

    failure: FailureClass
    message: str
    evidence: str


class ProblemDocument(msgspec.Struct):
    """RFC 9457. `key`: where in the request the mistake is."""

    type: str
    title: str
    status: int
    detail: str
    failure: FailureClass
    key: str | None = None
    retry_after_s: float | None = None


class Job(msgspec.Struct):
    """A job. `ended` tells whether `state` is an outcome (completed, failed, …) or where it stands (waiting, …).
    `doubt` says what may have been done twice for it at another service; mostly empty."""

    id: str
    state: str
    ended: bool
    service: str
    submitted_at: str | None
    started_at: str | None
    attempts: int
    worker: str | None
    labels: dict[str, str]
    customer_id: str | None = None
    workflow_id: str | None = None
    priority: int = 50
    ended_at: str | None = None
    reason: str = ""
    result: Any = None
    result_url: str | None = None
    error: Error | None = None
    usage: dict[str, float] = {}
    doubt: str = ""


class Blob(msgspec.Struct):
    """An uploaded blob; `{"blob": "<id>"}` is a payload that refers to it."""

    blob: str
    size: int
    crc32: int
    durable: bool
    encoding: str
    url: str


_GIVEN_TYPES = (Job, Blob, ProblemDocument)


def document(routes: Iterable[RouteLike]) -> bytes:
    """The document as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    types: list[type] = [*_GIVEN_TYPES]
    for route in routes:
        if isinstance(route.takes, type):
            types.append(route.takes)
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    _, components = msgspec.json.schema_components(types, ref_template=_COMPONENTS)
    return render.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "empd",
                "version": version(),
                "description": "Jobs in, results out. "
                f"States: {', '.join(state.name.lower() for state in State)}; "
                f"outcomes: {', '.join(outcome.label for outcome in Outcome)}.",
            },
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _operation(route: RouteLike) -> dict[str, Any]:
    text = inspect.getdoc(route.handler) or ""
    summary, _, rest = text.partition(": ")
    name = getattr(route.handler, "__name__", "operation")
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{name}",
        "summary": (rest or summary).split("\n")[0],
        "description": text,
        "parameters": _parameters(route),
        "responses": {str(code): _response(route, code, what) for code, what in route.answers.items()},
    }
    if route.takes is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.takes)}
    return operation


def _parameters(route: RouteLike) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    found += [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in route.query.items()
    ]
    if route.gives == "text/event-stream":
        found.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}})
    if route.method == "POST" and route.takes is JobRequest:
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _response(route: RouteLike, code: int, what: str) -> dict[str, Any]:
    if code == 204:
        return {"description": what}
    if code >= 400 and route.path != "/readyz":
        schema = {"$ref": _COMPONENTS.format(name="ProblemDocument")}
        return {"description": what, "content": {MEDIA_TYPE: {"schema": schema}}}
    return {"description": what, "content": {route.gives: {"schema": _schema(route)}}}


def _schema(route: RouteLike) -> dict[str, Any]:
    job = {"$ref": _COMPONENTS.format(name="Job")}
    if route.gives != "application/json":
        return {"type": "string"} if route.gives.startswith(("text/", "image/")) else {}
    if route.path == "/v1/jobs/{id}":
        return job
    if route.path == "/v1/blobs":
        return {"$ref": _COMPONENTS.format(name="Blob")}
    if route.path == "/v1/jobs":
        page = {"type": "object", "properties": {"jobs": {"type": "array", "items": job}}}
        return {"anyOf": [job, page]} if route.method == "POST" else page
    return {"type": "object"}


def _content(takes: Any) -> dict[str, Any]:
    if takes == "bytes":
        return {"application/octet-stream": {"schema": {}}}
    one = {"$ref": _COMPONENTS.format(name=takes.__name__)}
    schema = {"anyOf": [one, {"type": "array", "items": one}]} if takes is JobRequest else one
    return {"application/json": {"schema": schema}}
