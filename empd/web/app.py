"""The application: one table of routes, from which the router and the OpenAPI document are made."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from aiohttp import web

from empd.web import (
    assets,
    blobs,
    context,
    endpoints,
    guard,
    jobs,
    listing,
    openapi,
    pages,
    problems,
    servers,
    status,
    streams,
)
from empd.web.context import CONTEXT, Context
from empd.web.problems import Handler
from empd.web.submission import JobRequest

BODY_BYTES_MAX = 32 << 20
_STREAMS = frozenset({"/v1/events", "/v1/jobs/{id}/events"})


class Route(NamedTuple):
    """One row of the table. `answers`: status → what it means; `takes`: the body's type, or "bytes" for any."""

    method: str
    path: str
    handler: Handler
    answers: dict[int, str]
    query: dict[str, str] = {}
    takes: Any = None
    gives: str = "application/json"


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus' text format."""
    ctx = context.of(request)
    broker, _ = await status.ask_broker(ctx)
    shown = ctx.metrics
    shown.set_queues(broker)
    shown.set_gauge("empd_history_through_seq", ctx.archive.through_seq)
    shown.set_gauge("empd_sse_streams", len(ctx.hub))
    shown.sweep()
    body = await asyncio.get_running_loop().run_in_executor(None, shown.render)
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi_document(request: web.Request) -> web.Response:
    """GET /openapi.json: this API."""
    return web.Response(body=openapi.document(ROUTES), content_type="application/json")


_FIND = {400: "not an id", 404: "no such job", 410: "past retention", 503: "the broker does not answer"}
_FILTERS = {
    "service": "Only jobs of this type.",
    "state": "Only jobs in this state; may be given several times, or separated by commas.",
    "customer_id": "Only jobs of this customer.",
    "workflow_id": "Only jobs of this workflow.",
    "worker": "Only jobs on this worker.",
    "limit": f"Rows of a page, 1 to {listing.LIMIT_MAX}.",
    "cursor": "The `cursor` of the page before.",
}
_RESUME = {"last_event_id": "As the header Last-Event-ID, where none can be set."}
_BYTES = {200: "the bytes", 206: "a range of them", 304: "unchanged", 416: "no such range"}
_SSE = "text/event-stream"
_ANY = "application/octet-stream"

ROUTES = (
    Route("GET", "/", pages.index, {200: "the page"}, gives="text/html"),
    Route("GET", "/page.js", pages.script, {200: "its script"}, gives="text/javascript"),
    Route("GET", "/page.css", pages.style, {200: "its style"}, gives="text/css"),
    Route("GET", "/icon.svg", pages.icon, {200: "its icon"}, gives="image/svg+xml"),
    Route("GET", "/healthz", status.healthz, {200: "the process lives"}),
    Route("GET", "/readyz", status.readyz, {200: "a job would be accepted and run", 503: "it would not: reasons"}),
    Route("GET", "/metrics", metrics, {200: "metrics"}, gives="text/plain"),
    Route("GET", "/openapi.json", openapi_document, {200: "this document"}),
    Route("GET", "/v1/status", status.status, {200: "everything at a glance"}),
    Route("GET", "/v1/workers", status.workers, {200: "workers"}),
    Route("GET", "/v1/services", status.services, {200: "job types"}),
    Route(
        "GET",
        "/v1/services/{service}/instances/{index}/log",
        servers.server_log,
        {200: "the last lines of a server that the daemon runs", 400: "a bad number", 404: "no such server"},
        {"lines": f"How many, 1 to {servers.LINES_MAX}."},
    ),
    Route(
        "GET",
        "/v1/services/{service}/endpoints",
        endpoints.show_endpoints,
        {200: "what is registered", 404: "no such service"},
    ),
    Route(
        "PUT",
        "/v1/services/{service}/endpoints/{id}",
        endpoints.put_endpoint,
        {200: "registered for its TTL", 400: "invalid", 404: "no such service", 503: "too many"},
        takes=endpoints.EndpointRequest,
    ),
    Route(
        "DELETE", "/v1/services/{service}/endpoints/{id}", endpoints.remove_endpoint, {200: "forgotten", 404: "none"}
    ),
    Route("GET", "/v1/gpus", status.gpus, {200: "devices"}),
    Route("GET", "/v1/connectors", status.connectors, {200: "connectors"}),
    Route("GET", "/v1/jobs", listing.list_jobs, {200: "a page of jobs", 400: "a bad filter"}, _FILTERS),
    Route(
        "POST",
        "/v1/jobs",
        jobs.submit,
        {200: "ended, with results", 202: "accepted", 400: "invalid", 409: "conflict", 422: "unmatchable", 503: "full"},
        {"wait": "Seconds to wait for the end, 0 to 3600."},
        takes=JobRequest,
    ),
    Route("GET", "/v1/jobs/{id}", jobs.show, {200: "the job", **_FIND}),
    Route("DELETE", "/v1/jobs/{id}", jobs.cancel, {200: "it has ended", 202: "it stops", **_FIND}),
    Route("GET", "/v1/jobs/{id}/result", jobs.result, {**_BYTES, 409: "none yet", **_FIND}, gives=_ANY),
    Route("GET", "/v1/jobs/{id}/log", jobs.log, {200: "the last lines", **_FIND}),
    Route(
        "GET", "/v1/jobs/{id}/events", streams.job_events, {200: "events", 204: "over", **_FIND}, _RESUME, None, _SSE
    ),
    Route("GET", "/v1/events", streams.all_events, {200: "events", 503: "not now"}, _RESUME, gives=_SSE),
    Route("POST", "/v1/blobs", blobs.upload, {201: "the blob", 413: "too large", 507: "no room"}, takes="bytes"),
    Route("GET", "/v1/blobs/{id}", blobs.download, {**_BYTES, 404: "no such blob"}, gives=_ANY),
    Route("GET", "/v1/assets/{name}", assets.download_asset, {**_BYTES, 404: "no such asset"}, gives=_ANY),
)


def build(ctx: Context) -> web.Application:
    """The application around the process's parts."""
    middlewares = [
        _measure,
        problems.middleware,
        guard.build(guard.own_names() | frozenset(name.lower() for name in ctx.settings.http_hosts)),
    ]
    app = web.Application(middlewares=middlewares, client_max_size=BODY_BYTES_MAX)
    app[CONTEXT] = ctx
    app[blobs.KNOWN] = blobs.Known()
    for route in ROUTES:
        path = route.path.replace("{name}", "{name:.+}")  # the only parameter that has slashes
        app.router.add_route(route.method, path, route.handler)
        if route.method == "GET" and route.path not in _STREAMS:
            app.router.add_route("HEAD", path, route.handler)
    app.on_response_prepare.append(guard.add_headers)
    return app


@web.middleware
async def _measure(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts answers and their time, by route (never by path: that would be a series for each job)."""
    begun_s = time.perf_counter()
    status_code = 500
    try:
        response = await handler(request)
        status_code = response.status
        return response
    except asyncio.CancelledError:
        status_code = 499
        raise
    finally:
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "none"
        tally = request.app[CONTEXT].metrics.tally
        method = request.method if request.method in ("GET", "HEAD", "POST", "PUT", "DELETE") else "other"
        labels = (("method", method), ("route", path), ("status", str(status_code)))
        tally.count("empd_http_requests_total", labels)
        if path not in _STREAMS:
            tally.observe("empd_http_request_seconds", (("route", path),), [time.perf_counter() - begun_s])
