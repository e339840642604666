"""/v1/jobs/{id}/events and /v1/events: server-sent events, resumable by Last-Event-ID."""

from __future__ import annotations

import contextlib

from aiohttp import web

from empd.errors import FailureClass
from empd.result import JobStatus
from empd.web import context, render
from empd.web.events import STREAMS_MAX, Event, Stream
from empd.web.jobs import body_of, find, job_id
from empd.web.problems import Problem, invalid
from empd.web.transitions import ENDINGS

PING_S = 15.0
RETRY_MS = 1_000
_PING = b": ping\n\n"


async def job_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/jobs/{id}/events: first the job as it is (`state`, or its end), then each transition until it ends.

    With Last-Event-ID: what came after that row instead. 204 tells a resuming client that the job had ended by then.
    """
    ctx = context.of(request)
    number = job_id(request)
    last_seq = last_event_id(request)
    stream = await _open(ctx, number)
    try:
        joined_seq = ctx.feed.seq
        if last_seq is None:
            body = body_of(await find(ctx, number))
            name = body["state"] if body["ended"] else "state"
            body = {"job": body["id"], "event": name, **body}
            first = [Event(joined_seq, name, render.dumps(body))]
            return await _send(request, stream, first, joined_seq)
        missed = [event async for event in ctx.feed.replay(last_seq, joined_seq, number)]
        if not _ends(missed):
            known = await find(ctx, number)
            if not isinstance(known, JobStatus) and not missed:
                return web.Response(status=204)
        return await _send(request, stream, missed, max(joined_seq, last_seq))
    finally:
        await _leave(ctx, stream)


async def all_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events: every transition of every job; with Last-Event-ID from there on."""
    ctx = context.of(request)
    last_seq = last_event_id(request)
    stream = await _open(ctx, None)
    try:
        joined_seq = ctx.feed.seq
        response = await _start(request)
        if last_seq is not None:
            async with contextlib.aclosing(ctx.feed.replay(last_seq, joined_seq, None)) as missed:
                async for event in missed:
                    await response.write(event.encode())
        return await _pump(response, stream, max(joined_seq, last_seq or 0), until_end=False)
    finally:
        await _leave(ctx, stream)


def last_event_id(request: web.Request) -> int | None:
    """The row that the client has seen last; None for a new stream. The query stands in where no header can be set."""
    text = request.headers.get("Last-Event-ID") or request.query.get("last_event_id")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid("header.Last-Event-ID", f"the id of an event, a whole number, not {text[:50]!r}")
    return int(text)


async def _open(ctx: context.Context, number: int | None) -> Stream:
    if len(ctx.hub) >= STREAMS_MAX:
        raise Problem(
            FailureClass.UNAVAILABLE, f"{STREAMS_MAX} event streams are open; close one", retry_after_s=PING_S
        )
    stream = ctx.hub.open(number)
    try:
        await ctx.feed.ensure()
    except BaseException:  # a cancelled request too must not leave its stream behind
        await _leave(ctx, stream)
        raise
    return stream


async def _leave(ctx: context.Context, stream: Stream) -> None:
    ctx.hub.leave(stream)
    await ctx.feed.rest()


async def _start(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(b"retry: %d\n\n" % RETRY_MS)
    return response


async def _send(request: web.Request, stream: Stream, first: list[Event], after_seq: int) -> web.StreamResponse:
    response = await _start(request)
    for event in first:
        await response.write(event.encode())
    if _ends(first):
        await response.write_eof()
        return response
    return await _pump(response, stream, after_seq, until_end=True)


async def _pump(response: web.StreamResponse, stream: Stream, after_seq: int, *, until_end: bool) -> web.StreamResponse:
    """Sends events until the stream is over, the job has ended or the client is gone."""
    # The hub may have told rows again that the replay has sent already: numbers up to `after_seq` are passed over.
    with contextlib.suppress(ConnectionResetError):
        while (events := await stream.take(PING_S)) is not None:
            fresh = [event for event in events if not event.seq or event.seq > after_seq]
            await response.write(b"".join(event.encode() for event in fresh) if fresh else _PING)
            if until_end and _ends(fresh):
                break
        await response.write_eof()
    return response


def _ends(events: list[Event]) -> bool:
    return any(event.name in ENDINGS for event in events)
