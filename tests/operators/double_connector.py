"""A connector to `server_double`, as an operator would write it: it talks to its own GPU's instance."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp

from empd.connectors.base import Service
from empd.connectors.failures import ServiceUnavailable


class DoubleConnector(Service):
    """Passes the payload on. `{"recycle": reason}` has the server replaced; a broken connection is `unavailable`.
    `{"deaf": FILE}` makes the file and waits for ever in the first attempt, without noticing the server's death.
    `{"stubborn": true}`: its next check waits for ever, and takes the first cancel for something else.
    `{"clingy": true}`: its next close waits for ever, and has `close_limit_s` for it."""

    connector_id = "double"
    health_interval_s = 0.2
    close_limit_s = 0.5

    async def open(self) -> None:
        self.session = aiohttp.ClientSession(self.site.endpoint)
        self.is_sulking = self.is_stubborn = self.is_clingy = False

    async def close(self) -> None:
        await self.session.close()
        if self.is_clingy:
            await asyncio.Event().wait()

    async def check_health(self) -> bool:
        if self.is_stubborn:
            self.is_stubborn = False
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return not self.is_sulking

    async def process(self, job: Any, context: Any) -> Any:
        payload = context.payload
        if "recycle" in payload:
            self.site.recycle_server(payload["recycle"])
        if "deaf" in payload and job.attempt == 1:
            Path(payload["deaf"]).touch()
            await asyncio.Event().wait()
        if payload.get("sulk"):
            self.is_sulking = True
        self.is_stubborn = bool(payload.get("stubborn"))
        self.is_clingy = bool(payload.get("clingy"))
        try:
            if payload.get("facts"):
                async with self.session.get("/facts") as answer:
                    return {**await answer.json(), "worker": self.site.worker}
            async with self.session.post("/work", json=payload) as answer:
                return {**await answer.json(), "worker": self.site.worker}
        except aiohttp.ClientError as error:
            raise ServiceUnavailable(f"{type(error).__name__}: {error}") from error
