"""A simulated service behind a WebSocket: `empd simulate --ws PORT`. JSON messages, many jobs on one connection.

    → {"type": "simulation_job", "id", "payload"}      takes it on; the same id is the same job
    → {"type": "simulation_query", "id"}               where it stands; its messages then come on this connection
    → {"type": "simulation_cancel", "id"}              stops it
    → {"type": "ping"}                                 ← {"type": "pong"}
    ← simulation_started, simulation_progress {"progress", "step", "steps"}, then one of simulation_complete {"result"},
      simulation_error {"error"}, simulation_cancelled; each with "id". A query of what it does not know (any more):
      simulation_unknown

What a payload may wish, faults among them: `wishes`. Here `cut_after` counts a job's messages, once in its life; `hang`
makes the connection deaf and dumb, to pings too; `status` and `error_body` refuse the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from empd.connectors.simulator.wishes import Simulated, wish_of
from empd.connectors.simulator.work import Task, Work, without_wish

MESSAGE_BYTES_MAX = 64 << 20


class SimulatedWebSocket:
    """The server. `work` is open to whoever runs it in his own process (tests)."""

    def __init__(self, simulated: Simulated | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.work = Work(simulated or Simulated())
        self.url = ""
        self.connections: set[Connection] = set()
        self.clock = clock
        self.cut: set[str] = set()
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> str:
        """Listens; returns the URL. Raises OSError when the port is taken."""
        app = web.Application()
        app.add_routes([web.get("/", self._connected)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = f"ws://{host}:{self._runner.addresses[0][1]}"
        return self.url

    async def close(self) -> None:
        """Breaks all connections and lets go of the port."""
        self.break_all()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def break_all(self) -> None:
        """Cuts every connection, without a word."""
        for connection in tuple(self.connections):
            connection.abort()

    async def _connected(self, request: web.Request) -> web.StreamResponse:
        key = self.work.simulated.api_key
        shown = (request.headers.get("X-API-Key"), request.headers.get("Authorization", "").removeprefix("Bearer "))
        if key and key not in shown:
            return web.Response(status=401)
        socket = web.WebSocketResponse(autoping=False, max_msg_size=MESSAGE_BYTES_MAX)
        await socket.prepare(request)
        connection = Connection(self, socket, request)
        self.connections.add(connection)
        try:
            await connection.serve()
        finally:
            self.connections.discard(connection)
        return socket


class Connection:
    """One caller."""

    def __init__(self, server: SimulatedWebSocket, socket: web.WebSocketResponse, request: web.Request) -> None:
        self._server = server
        self._socket = socket
        self._request = request
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._deaf = False

    def abort(self) -> None:
        """Breaks the connection."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def serve(self) -> None:
        """Reads until the caller goes."""
        try:
            async for frame in self._socket:
                if self._deaf:
                    continue
                if frame.type is WSMsgType.PING:
                    await self._socket.pong(frame.data)
                elif frame.type is WSMsgType.TEXT:
                    await self._received(frame.data)
        except ConnectionError:
            return
        finally:
            for follower in self._followers.values():
                follower.cancel()

    async def _received(self, text: str) -> None:
        try:
            message = orjson.loads(text)
            kind, key = message["type"], str(message.get("id", ""))
        except (ValueError, TypeError, KeyError):
            await self._say("error", "", error="not a message")
            return
        self._server.work.requests[kind] += 1
        match kind:
            case "ping":
                await self._socket.send_str('{"type":"pong"}')
            case "simulation_job":
                await self._take(key, message.get("payload"))
            case "simulation_query":
                await self._query(key)
            case "simulation_cancel":
                task = self._server.work.known(key)
                if task is not None:
                    self._server.work.cancel(task.id, self._server.clock())
                    self._follow(key, task)

    async def _take(self, key: str, payload: Any) -> None:
        try:
            wish = wish_of(payload, None)
        except ValueError as error:
            await self._say("error", key, error={"code": "invalid_request", "message": str(error)})
            return
        faults = wish.faults
        if faults.status is not None or faults.error_body:
            code = f"simulated_{faults.status}" if faults.status else "simulated_error"
            await self._say("error", key, error={"code": code, "message": "as it was asked for"})
            return
        task = self._server.work.submit(without_wish(payload), wish, key, self._server.clock())
        if faults.hang:
            self._deaf = True
            return
        self._follow(key, task, 1)

    async def _query(self, key: str) -> None:
        known = self._server.work.known(key)
        task = self._server.work.ask(known.id) if known is not None else None
        if task is None:
            await self._say("unknown", key)
        else:
            self._follow(key, task)

    def _follow(self, key: str, task: Task, first: int = 0) -> None:
        former = self._followers.pop(key, None)
        if former is not None:
            former.cancel()
        self._followers[key] = asyncio.get_running_loop().create_task(self._tell(key, task, first))

    async def _tell(self, key: str, task: Task, first: int) -> None:
        """The job's messages from step `first` on; 0: from the next one."""
        clock, cut_after = self._server.clock, task.faults.cut_after
        if key in self._server.cut:
            cut_after = None
        with contextlib.suppress(ConnectionError):
            await self._say("started", key)
            for number, step in enumerate(range(first or task.step(clock()) + 1, task.steps + 1)):
                if cut_after is not None and number >= cut_after:
                    self._server.cut.add(key)
                    self.abort()
                    return
                wait_s = task.step_at_s(step) - clock()
                if wait_s > 0 and not task.cancelled:
                    await asyncio.sleep(wait_s)
                if task.cancelled:
                    break
                await self._say("progress", key, progress=step / task.steps, step=step, steps=task.steps)
            for _ in range(1 + task.faults.duplicate):
                await self._end(key, task.view(clock()))

    async def _end(self, key: str, view: dict[str, Any]) -> None:
        match view["status"]:
            case "completed":
                await self._say("complete", key, result=view["result"])
            case "failed":
                await self._say("error", key, error=view["error"])
            case _:
                await self._say("cancelled", key)

    async def _say(self, kind: str, key: str, **fields: Any) -> None:
        message = {"type": f"simulation_{kind}", "id": key, **fields}
        await self._socket.send_str(orjson.dumps(message).decode())
