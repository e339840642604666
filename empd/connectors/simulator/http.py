"""A simulated service behind HTTP: `empd simulate --http PORT`. For operators to try things on, and for tests.

    POST /process                    the work, done while the caller waits
    POST /jobs                       takes it on: 202 {"id", "status"}; the same Idempotency-Key gives the same id
    GET  /jobs/{id}                  {"id", "status", "progress", "step", "steps", "result", "error"}; status is one of
                                     running, completed, failed, cancelled
    POST /jobs/{id}/cancel           stops it
    GET  /jobs/{id}/events           the same as server-sent events, resumed by Last-Event-ID
    GET  /jobs/{id}/poll?cursor=N    the same as long polling: {"items", "cursor"}
    POST /stream?framing=sse|ndjson  the work's pieces as they come
    GET  /health                     200 or 503
    GET  /_/counts                   what was asked and what was done; POST /_/reset, POST /_/restart (forgets the work)

What a request may wish of it, faults among them: `wishes`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import orjson
from aiohttp import web

from empd.connectors.simulator.wishes import NO_FAULTS, Faults, Patience, Simulated, Wish, wish_of
from empd.connectors.simulator.work import Task, Work, without_wish

KEY_HEADER = "Idempotency-Key"
BODY_BYTES_MAX = 64 << 20
POLL_S_MAX = 5.0
_ERROR = {"error": {"code": "simulated_error", "message": "an error in a good answer, as it was asked for"}}


class Asked(NamedTuple):
    """One request: the work, what is wished of the simulation, the idempotency key."""

    body: Any
    wish: Wish
    key: str


Handler = Callable[[web.Request, Asked], Awaitable[web.StreamResponse]]


class _Cut(Exception):
    """The connection is to break here."""


class SimulatedHTTP:
    """The server. `work` is open to whoever runs it in his own process (tests)."""

    def __init__(self, simulated: Simulated | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.work = Work(simulated or Simulated())
        self.url = ""
        self._clock = clock
        self._patience = Patience()
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> str:
        """Listens; returns the URL. Raises OSError when the port is taken."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                self._route("POST", "/process", self._process),
                self._route("POST", "/jobs", self._submit),
                self._route("GET", "/jobs/{id}", self._status),
                self._route("POST", "/jobs/{id}/cancel", self._cancel),
                self._route("GET", "/jobs/{id}/events", self._events),
                self._route("GET", "/jobs/{id}/poll", self._poll),
                self._route("POST", "/stream", self._stream),
                self._route("GET", "/health", self._health),
                web.get("/_/counts", self._counts),
                web.post("/_/reset", self._reset),
                web.post("/_/restart", self._restart),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"
        return self.url

    async def close(self) -> None:
        """Breaks all connections and lets go of the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- around every request ---

    def _route(self, method: str, path: str, handler: Handler) -> web.RouteDef:
        place = f"{method} {path}"

        async def around(request: web.Request) -> web.StreamResponse:
            self.work.requests[place] += 1
            if not self._may_enter(request):
                return _answer({"error": {"code": "invalid_api_key", "message": "who are you?"}}, 401)
            try:
                asked = self._asked(await request.read(), request.headers, place)
            except ValueError as error:
                return _answer({"error": {"code": "invalid_request", "message": str(error)}}, 400)
            try:
                return await self._struck(request, asked, handler)
            except _Cut:
                if request.transport is not None:
                    request.transport.abort()
                raise asyncio.CancelledError from None
            except (asyncio.CancelledError, ConnectionError):
                self.work.ended["hung_up"] += 1
                raise asyncio.CancelledError from None

        return web.route(method, path, around)

    def _asked(self, data: bytes, headers: Mapping[str, str], place: str) -> Asked:
        body, key = orjson.loads(data or b"null"), headers.get(KEY_HEADER, "")
        wish = wish_of(body, headers.get("X-Faults"))
        if not self._patience.strikes(wish.faults, place, key):
            wish = msgspec.structs.replace(wish, faults=NO_FAULTS)
        return Asked(without_wish(body), wish, key)

    def _may_enter(self, request: web.Request) -> bool:
        key = self.work.simulated.api_key
        shown = (request.headers.get("X-API-Key"), request.headers.get("Authorization", "").removeprefix("Bearer "))
        return not key or key in shown

    async def _struck(self, request: web.Request, asked: Asked, handler: Handler) -> web.StreamResponse:
        """The answer, with the faults that strike any answer."""
        faults = asked.wish.faults
        if faults is NO_FAULTS:
            return await handler(request, asked)
        if faults.hang:
            await asyncio.sleep(3600)
        if faults.status is not None:
            return _failure(faults.status, faults)
        if faults.error_body:
            return _answer(_ERROR)
        response = await handler(request, asked)
        if faults.status_after is not None:
            return _failure(faults.status_after, faults)
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            if faults.slow_s:
                return await self._drip(request, response, faults.slow_s)
            # Of work that is followed, the events are cut, not the answer that it was taken on.
            if faults.cut_after is not None and request.path != "/jobs":
                return await self._cut(request, response.body, faults.cut_after)
        return response

    async def _drip(self, request: web.Request, whole: web.Response, slow_s: float) -> web.StreamResponse:
        body = whole.body
        assert isinstance(body, bytes)
        response = web.StreamResponse(status=whole.status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for byte in body:
            await response.write(bytes([byte]))
            await asyncio.sleep(slow_s / len(body))
        return response

    async def _cut(self, request: web.Request, body: bytes, after: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: min(after, len(body) - 1)])
        raise _Cut

    # --- the service ---

    async def _process(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self._take(asked)
        await self._until(task.step_at_s(task.steps))
        view = task.view(self._clock())
        return _answer(view, 500 if view["status"] == "failed" else 200)

    async def _submit(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self._take(asked)
        return _answer({"id": task.id, "status": task.status(self._clock())}, 202)

    async def _status(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self.work.ask(request.match_info["id"])
        return _unknown() if task is None else _answer(task.view(self._clock()))

    async def _cancel(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self.work.cancel(request.match_info["id"], self._clock())
        return _unknown() if task is None else _answer(task.view(self._clock()))

    async def _events(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self.work.ask(request.match_info["id"])
        if task is None:
            return _unknown()
        last = request.headers.get("Last-Event-ID", "0")
        first = int(last) + 1 if last.isdigit() else 1

        async def pieces() -> AsyncIterator[bytes]:
            async for step, view in self._views(task, first):
                kind = "progress" if view["status"] == "running" else view["status"]
                yield f"id: {step}\nevent: {kind}\ndata: {orjson.dumps(view).decode()}\n\n".encode()

        return await self._pieces(request, "text/event-stream", pieces(), task.faults)

    async def _poll(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self.work.ask(request.match_info["id"])
        if task is None:
            return _unknown()
        cursor = request.query.get("cursor", "0")
        first = int(cursor) + 1 if cursor.isdigit() else 1
        await self._until(min(task.step_at_s(min(first, task.steps)), self._clock() + POLL_S_MAX))
        view = task.view(self._clock())
        items = [{**view, "step": step} for step in range(first, view["step"] + 1)]
        is_over = first > task.steps or (view["status"] == "cancelled" and not items)
        return _answer({"items": items, **({} if is_over else {"cursor": max(first - 1, view["step"])})})

    async def _stream(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        task = self._take(asked)
        is_sse = request.query.get("framing", "sse") == "sse"

        async def pieces() -> AsyncIterator[bytes]:
            async for step, view in self._views(task, 1):
                piece = {"piece": f"piece {step} ", "progress": view["progress"]}
                if "error" in view:
                    piece = {"error": view["error"]}
                line = orjson.dumps(piece)
                yield b"data: " + line + b"\n\n" if is_sse else line + b"\n"
            yield b"data: [DONE]\n\n" if is_sse else b'{"done": true}\n'

        kind = "text/event-stream" if is_sse else "application/x-ndjson"
        return await self._pieces(request, kind, pieces(), task.faults)

    async def _health(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        return _answer({"status": "ok"}) if self.work.healthy() else _answer({"status": "not well"}, 503)

    # --- its counters ---

    async def _counts(self, request: web.Request) -> web.StreamResponse:
        return _answer(self.work.counts(self._clock()))

    async def _reset(self, request: web.Request) -> web.StreamResponse:
        self.work.reset()
        self._patience.clear()
        return _answer({})

    async def _restart(self, request: web.Request) -> web.StreamResponse:
        self.work.restart()
        return _answer({})

    # --- parts ---

    def _take(self, asked: Asked) -> Task:
        return self.work.submit(asked.body, asked.wish, asked.key, self._clock())

    async def _until(self, at_s: float) -> None:
        wait_s = at_s - self._clock()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _views(self, task: Task, first: int) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """The task's standing after each step from `first` on."""
        for step in range(first, task.steps + 1):
            await self._until(task.step_at_s(step))
            view = task.view(self._clock())
            is_running = step < task.steps and not task.cancelled
            yield step, {**view, "status": "running" if is_running else view["status"], "step": step}
            if task.cancelled:
                return

    async def _pieces(
        self, request: web.Request, kind: str, pieces: AsyncIterator[bytes], faults: Faults
    ) -> web.StreamResponse:
        """A stream. It is cut once: not again where it is taken up."""
        cut_after = None if "Last-Event-ID" in request.headers else faults.cut_after
        response = web.StreamResponse(headers={"Content-Type": kind, "Cache-Control": "no-store"})
        await response.prepare(request)
        number, last = 0, b""
        async for last in pieces:
            if cut_after is not None and number >= cut_after:
                raise _Cut
            number += 1
            await response.write(last)
        if faults.duplicate and last:
            await response.write(last)
        return response


def _answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _failure(status: int, faults: Faults) -> web.Response:
    response = _answer({"error": {"code": f"simulated_{status}", "message": "as it was asked for"}}, status)
    if faults.retry_after_s is not None:
        response.headers["Retry-After"] = f"{faults.retry_after_s:g}"
    return response


def _unknown() -> web.Response:
    return _answer({"error": {"code": "unknown", "message": "there is no such job"}}, 404)
