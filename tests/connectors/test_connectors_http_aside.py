"""What must not wait for the jobs' connections: a cancel reaches its service, health is asked, while all are taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from test_connectors_http import POLLED, Polled
from websocket_services import context_of, until

from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.protocol.http import HTTPConnector

FULL = pytest.mark.parametrize(
    "pool",
    [{}, {"connections_max": 1}, {"connections_max": 9, "rate_limit": {"concurrent_max": 1}}],
    ids=["by_slots", "as_told", "by_calls"],
)


class Held:
    """Answers neither a call nor a question about work before that work is cancelled."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.seen: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(f"{request.method} {request.path}")
        match request.method, request.path:
            case "POST", "/jobs":
                return web.json_response({"id": "1"})
            case "POST", "/jobs/1/cancel":
                self.cancelled.set()
            case _, "/health":
                pass
            case _:
                await self.cancelled.wait()
        return web.json_response({"status": "cancelled", "value": 7})


@contextlib.asynccontextmanager
async def held(kind: type[HTTPConnector], **config: Any) -> AsyncIterator[tuple[Held, Any]]:
    """The service, and a connector with one slot."""
    service = Held()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    connector = registry.build(kind, {"base_url": url, "health_path": "/health", **config}, Site(service="s"))
    assert await connector.start(), connector.reason
    try:
        async with asyncio.timeout(60):
            yield service, connector
    finally:
        await connector.stop()
        await runner.cleanup()


@FULL
def test_a_cancel_reaches_a_service_that_has_not_answered_the_question_how_it_goes(pool: dict[str, Any]) -> None:
    async def run() -> None:
        async with held(Polled, **POLLED, **pool) as (service, connector):
            context = context_of({})
            job = asyncio.create_task(connector.process(context.job, context))
            await until(lambda: "GET /jobs/1" in service.seen)
            context.mark_stopping("cancelled")
            await connector.cancel(context.job, context)
            assert service.seen.count("POST /jobs/1/cancel") == 1
            assert service.seen.count("GET /jobs/1") == 1
            assert await job == 7

    asyncio.run(run())


@FULL
def test_a_service_is_well_while_all_its_connections_are_at_work(pool: dict[str, Any]) -> None:
    async def run() -> None:
        async with held(HTTPConnector, endpoint="/slow", health_timeout_s=1.0, **pool) as (service, connector):
            jobs = [asyncio.create_task(connector.request("POST", "/slow")) for _ in range(3)]
            await until(lambda: "POST /slow" in service.seen)
            assert await connector.probe(), connector.reason
            service.cancelled.set()
            await asyncio.gather(*jobs)

    asyncio.run(run())
