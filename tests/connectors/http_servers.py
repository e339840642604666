"""Servers that nobody here wrote (uvicorn, Starlette, sse-starlette) with an app for the tests, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.box import wait_until


class Upstream:
    """The app's memory: how often each path was called, and what came last."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.last: dict[str, Any] = {}
        self.tokens = 0
        self.good_tokens: set[str] = set()
        self.gone = threading.Event()
        self.waiting = threading.Event()
        self.base_url = ""
        self.other_url = ""
        self.script: list[Any] = []

    def reset(self) -> None:
        self.calls.clear()
        self.last.clear()
        self.tokens = 0
        self.good_tokens.clear()
        self.gone.clear()
        self.waiting.clear()
        self.script = []


def app_of(upstream: Upstream) -> Starlette:
    async def note(request: Request) -> None:
        upstream.calls[request.url.path] += 1
        body = await request.body()
        upstream.last = {"headers": dict(request.headers), "body": body, "query": dict(request.query_params)}

    async def echo(request: Request) -> Response:
        await note(request)
        return JSONResponse({"got": await request.json(), "method": request.method})

    async def scripted(request: Request) -> Response:
        """The statuses of the script, one a call; then 200."""
        await note(request)
        status = upstream.script.pop(0) if upstream.script else 200
        headers = {"Retry-After": request.query_params["after"]} if "after" in request.query_params else {}
        return JSONResponse({"error": {"message": "as told", "code": f"c{status}"}}, status, headers)

    async def leak(request: Request) -> Response:
        await note(request)
        return JSONResponse({"error": {"message": f"bad key {request.headers['x-api-key']}"}}, 401)

    async def slow(request: Request) -> Response:
        await note(request)
        upstream.waiting.set()
        try:
            for _ in range(600):
                if await request.is_disconnected():
                    break
                await asyncio.sleep(0.02)
        finally:
            upstream.gone.set()
        return PlainTextResponse("late")

    async def big(request: Request) -> Response:
        await note(request)

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield b"x" * 65536

        if "length" in request.query_params:
            return PlainTextResponse("x" * 1_000_000)
        return StreamingResponse(pieces())

    async def cut(request: Request) -> Response:
        await note(request)

        async def pieces() -> AsyncIterator[bytes]:
            yield b'data: {"n": 1}\n\n'
            await asyncio.sleep(0.01)
            raise ConnectionAbortedError

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def redirect(request: Request) -> Response:
        await note(request)
        where = {"here": "/echo", "away": f"{upstream.other_url}/echo", "loop": "/redirect?to=loop"}
        return RedirectResponse(where[request.query_params["to"]], int(request.query_params.get("status", 307)))

    async def token(request: Request) -> Response:
        await note(request)
        upstream.tokens += 1
        upstream.good_tokens = {f"token-{upstream.tokens}"}
        answer = {"access_token": f"token-{upstream.tokens}", "token_type": "Bearer", "expires_in": 3600}
        return JSONResponse(answer)

    async def protected(request: Request) -> Response:
        await note(request)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return JSONResponse({"user": "me"}) if given in upstream.good_tokens else JSONResponse({}, 401)

    async def events(request: Request) -> Response:
        await note(request)
        first = int(request.headers.get("last-event-id", "0")) + 1
        last = int(request.query_params.get("last", "9"))
        stop = int(request.query_params.get("stop", last))

        async def pieces() -> AsyncIterator[dict[str, Any]]:
            for number in range(first, min(first + stop, last + 1)):
                yield {"id": str(number), "event": "end" if number == last else "step", "data": f"line {number}\nmore"}

        return EventSourceResponse(pieces(), sep=request.query_params.get("sep", "\r\n"))

    async def lines(request: Request) -> Response:
        await note(request)

        async def pieces() -> AsyncIterator[str]:
            for number in range(5):
                yield f'{{"n": {number}'
                yield "}\n"

        return StreamingResponse(pieces(), media_type="application/x-ndjson")

    async def jobs(request: Request) -> Response:
        """Takes work; the script says what its status is, call by call."""
        await note(request)
        return JSONResponse({"id": upstream.calls["/jobs"]}, 202)

    async def job(request: Request) -> Response:
        await note(request)
        if "cancelled" in upstream.script or not upstream.script:
            return JSONResponse({"status": "cancelled" if upstream.script else "done", "value": 7})
        state = upstream.script[0] if upstream.script[0] == "running" else upstream.script.pop(0)
        upstream.waiting.set()
        return JSONResponse({"status": state, "progress": 0.5}, 404 if state == "gone" else 200)

    async def cancel(request: Request) -> Response:
        await note(request)
        upstream.script = ["cancelled"]
        return JSONResponse({})

    async def poll(request: Request) -> Response:
        """Long polling: two items a poll, up to five, then an empty list without a cursor."""
        await note(request)
        first = int(request.query_params.get("cursor", "0"))
        found = [{"n": number} for number in range(first, min(first + 2, 5))]
        return JSONResponse({"items": found, **({"cursor": first + 2} if found else {})})

    async def tokens(request: Request) -> Response:
        """As chat services stream: pieces of text, then `[DONE]`; with `fail` an error in between."""
        await note(request)

        async def pieces() -> AsyncIterator[str]:
            for number, word in enumerate(("Hel", "lo", "!")):
                yield f'data: {{"choices": [{{"text": "{word}"}}], "done": {number / 3}}}\n\n'
                if "fail" in request.query_params:
                    yield 'data: {"error": {"message": "no more", "code": "c9"}}\n\n'
            if "short" not in request.query_params:
                yield "data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    handlers = {
        "/echo": echo, "/scripted": scripted, "/leak": leak, "/slow": slow, "/big": big, "/cut": cut,
        "/redirect": redirect, "/token": token, "/protected": protected, "/events": events, "/lines": lines,
        "/jobs": jobs, "/jobs/{id}": job, "/jobs/{id}/cancel": cancel,
        "/poll": poll, "/tokens": tokens,
        "/odd/{name:path}/x": echo,
    }  # fmt: skip
    methods = ["GET", "POST", "PUT", "DELETE"]
    return Starlette(routes=[Route(path, handler, methods=methods) for path, handler in handlers.items()])


@contextlib.contextmanager
def serve(app: Any) -> Iterator[str]:
    """Runs an ASGI app under uvicorn in a thread; gives its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "uvicorn")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


@contextlib.contextmanager
def upstream_server() -> Iterator[Upstream]:
    """The app on two addresses: a host, and another one to be redirected to."""
    upstream = Upstream()
    app = app_of(upstream)
    with serve(app) as upstream.base_url, serve(app) as upstream.other_url:
        yield upstream
