"""/v1/jobs: submit, list, look at, cancel; results and logs."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from empd.client.handle import Ending, Handle
from empd.errors import FailureClass, NotRunning, Refused
from empd.job import format_id, parse_id
from empd.payload import BlobRef
from empd.result import FinishedJob, JobStatus
from empd.store.record import FinishedRecord
from empd.web import blobs, context, records, render, submission
from empd.web.problems import Problem, invalid, of_error, of_refusal
from empd.web.telemetry_socket import progress
from empd.wire.codec import decode_options

WAIT_S_MAX = 3600.0
LOOKS_MAX = 3


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(body=render.dumps(value), status=status, content_type="application/json", headers=headers)


def job_id(request: web.Request) -> int:
    """The id in the path. Raises Problem (400) when it is none."""
    try:
        return parse_id(request.match_info["id"])
    except ValueError as error:
        raise invalid("path.id", str(error)) from None


# --- submit ----------------------------------------------------------------------------------------------------------


async def submit(request: web.Request) -> web.Response:
    """POST /v1/jobs: one job or a list. 202 with ids, or (`?wait=seconds`) 200 with results once all have ended."""
    ctx = context.of(request)
    wait_s = submission.wait_seconds(request, WAIT_S_MAX)
    jobs, many = submission.parse(await request.read())
    prepared = await submission.prepare(request, jobs, many)
    handles = await ctx.gateway.submit(prepared)
    try:
        ended = wait_s > 0 and await _all_ended(ctx, handles, wait_s)
        bodies = [_submitted(handle) for handle in handles]
    finally:
        ctx.gateway.release(handles)
    if many:
        return reply({"jobs": bodies}, 200 if ended else 202)
    if isinstance(handles[0].error, Refused):
        raise of_error(handles[0].error)
    return reply(bodies[0], 200 if ended else 202, {"Location": f"/v1/jobs/{bodies[0]['id']}"})


async def _all_ended(ctx: context.Context, handles: list[Handle], wait_s: float) -> bool:
    deadline = asyncio.get_running_loop().time() + wait_s
    for handle in handles:
        left_s = deadline - asyncio.get_running_loop().time()
        if not await ctx.gateway.ended(handle, max(0.0, left_s)):
            return False
    return True


def _submitted(handle: Handle) -> dict[str, Any]:
    if isinstance(handle.error, Refused):
        refused = handle.error
        return {"error": of_refusal(refused.failure, refused.reason, refused.retry_after_s).document()}
    if handle.finished is not None:
        return ended_body(handle)
    name = format_id(handle.number)
    return {"id": name, "state": "accepted", "ended": False, "url": f"/v1/jobs/{name}"}


def ended_body(handle: Handle) -> dict[str, Any]:
    """An ended job that the broker told of."""
    ending = handle.ending or Ending()
    if handle.finished is None:
        raise RuntimeError("ended_body is for ended jobs")
    return render.finished(handle.finished, decode_options(ending.options), ending.worker, ending.at_ns)


# --- look at ---------------------------------------------------------------------------------------------------------


async def find(ctx: context.Context, number: int) -> Handle | JobStatus | FinishedRecord:
    """A job, wherever it is known: the broker first, then history. Raises Problem 404, 410, 503."""
    broker_error: NotRunning | None = None
    try:
        known = await _ask_broker(ctx, number)
        if known is not None:
            return known
    except NotRunning as error:
        broker_error = error
    found, expired = await ctx.archive.call(lambda history: records.lookup(history, [number]))
    if found:
        return found[0]
    name = format_id(number)
    if expired:
        raise Problem(FailureClass.EXPIRED, f"job {name} ended, and its record is past retention: expired_from_history")
    if broker_error is not None:
        raise broker_error
    raise Problem(FailureClass.NOT_FOUND, f"there is no job {name}")


async def _ask_broker(ctx: context.Context, number: int) -> Handle | JobStatus | None:
    for _ in range(LOOKS_MAX):
        ended, statuses = await ctx.gateway.look([number])
        if ended:
            return ended[0]
        if statuses:
            return None if statuses[0].state == "unknown" else statuses[0]
        # The job ended while two requests asked for it, and the other one took the result: ask again.
    return None


async def show(request: web.Request) -> web.Response:
    """GET /v1/jobs/{id}."""
    ctx = context.of(request)
    number = job_id(request)
    known = await find(ctx, number)
    body = body_of(known)
    if not body["ended"]:
        body["progress"] = _progress(ctx, number)
    return reply(body)


def body_of(known: Handle | JobStatus | FinishedRecord) -> dict[str, Any]:
    """The job as JSON."""
    if isinstance(known, JobStatus):
        return render.unfinished(known)
    if isinstance(known, FinishedRecord):
        return records.to_json(known)
    return ended_body(known)


def _progress(ctx: context.Context, number: int) -> dict[str, Any] | None:
    said = ctx.logs.progress(number)
    return None if said is None else progress(said)


async def result(request: web.Request) -> web.StreamResponse:
    """GET /v1/jobs/{id}/result: the result's own bytes, whole or a range; msgpack as JSON when that is asked for."""
    ctx = context.of(request)
    number = job_id(request)
    known = await find(ctx, number)
    if isinstance(known, JobStatus):
        problem = Problem(FailureClass.UNAVAILABLE, f"the job is {known.state}: no result yet", status=409)
        problem.members["retry_after_s"] = 1
        raise problem
    if isinstance(known, FinishedRecord) and known.result_expired:
        raise Problem(FailureClass.EXPIRED, f"the result of job {format_id(number)} is past result_keep_s")
    finished = records.to_finished(known) if isinstance(known, FinishedRecord) else known.finished
    if finished is None or finished.result is None:
        raise _no_result(finished, number)
    if isinstance(finished.result, BlobRef):
        request.app[blobs.KNOWN].add(finished.result)
        return await blobs.send_blob(request, finished.result)
    data, media_type = _representation(finished.result, request.headers.get("Accept", ""))
    return await blobs.send_bytes(request, data, f'"{format_id(number)}-{media_type[-7:]}"', media_type)


def _no_result(finished: FinishedJob | None, number: int) -> Problem:
    name = format_id(number)
    if finished is not None and finished.error is not None:
        failure = render.error(finished.error)
        return Problem(FailureClass.NOT_FOUND, f"job {name} has no result: {finished.error.message}", error=failure)
    return Problem(FailureClass.NOT_FOUND, f"job {name} has no result")


def _representation(packed: bytes, accept: str) -> tuple[bytes, str]:
    """A result in the form asked for. Bytes that a connector returned are given as they were, not packed."""
    plain = render.plain_bytes(packed)
    if "application/json" in accept:
        return render.dumps(render.packed(packed)), "application/json"
    if plain is not None:
        return plain, "application/octet-stream"
    return packed, "application/msgpack"


async def log(request: web.Request) -> web.Response:
    """GET /v1/jobs/{id}/log: the last lines that its attempts logged, as kept in memory."""
    ctx = context.of(request)
    number = job_id(request)
    lines, dropped = ctx.logs.tail(number)
    if not lines:
        await find(ctx, number)
    rows = [{"at": render.time_of(line.at_ns), "epoch": line.epoch, "text": line.text} for line in lines]
    return reply({"id": format_id(number), "lines": rows, "dropped": dropped})


async def cancel(request: web.Request) -> web.Response:
    """DELETE /v1/jobs/{id}: asks to stop it; idempotent. 202 while it stops, 200 once it has ended."""
    ctx = context.of(request)
    number = job_id(request)
    await ctx.gateway.cancel([number])
    body = body_of(await find(ctx, number))
    return reply(body, 200 if body["ended"] else 202)
