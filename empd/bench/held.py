"""Work that the bench's HTTP service does not end by itself, and when it was told to stop.

`POST /held` answers when it is over, which it never is; `POST /works` answers with an id, `GET /works/{id}` says how it
goes, `POST /works/{id}/cancel` ends it. `GET /{number}/begun` and `GET /{number}/stopped` answer as soon as it is so,
with the moment (ns of CLOCK_MONOTONIC, which all processes of a machine share).
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from aiohttp import web

KEPT_MAX = 10_000


class _Work(NamedTuple):
    begun: asyncio.Future[int]
    stopped: asyncio.Future[int]


class Held:
    """All pieces of work, by the number in the request that brought them."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.post("/held", self._hold),
            web.post("/works", self._take),
            web.get("/works/{number}", self._tell),
            web.post("/works/{number}/cancel", self._stop),
            web.get(r"/{number:\d+}/{moment:begun|stopped}", self._moment),
        ]

    def _work(self, number: str) -> _Work:
        if number not in self._works:
            loop = asyncio.get_running_loop()
            self._works[number] = _Work(loop.create_future(), loop.create_future())
            if len(self._works) > KEPT_MAX:
                del self._works[next(iter(self._works))]
        return self._works[number]

    async def _hold(self, request: web.Request) -> web.Response:
        work = self._work(str((await request.json())["number"]))
        _now(work.begun)
        try:
            return await asyncio.Future()
        finally:
            _now(work.stopped)  # the connection is closed

    async def _take(self, request: web.Request) -> web.Response:
        return web.json_response({"id": str((await request.json())["number"])})

    async def _tell(self, request: web.Request) -> web.Response:
        work = self._work(request.match_info["number"])
        _now(work.begun)  # who asks for it has its id
        return web.json_response({"status": "cancelled" if work.stopped.done() else "running"})

    async def _stop(self, request: web.Request) -> web.Response:
        _now(self._work(request.match_info["number"]).stopped)
        return web.json_response({"status": "cancelled"})

    async def _moment(self, request: web.Request) -> web.Response:
        work = self._work(request.match_info["number"])
        moment = work.begun if request.match_info["moment"] == "begun" else work.stopped
        return web.json_response({"at_ns": await asyncio.shield(moment)})


def _now(moment: asyncio.Future[int]) -> None:
    if not moment.done():
        moment.set_result(time.monotonic_ns())
