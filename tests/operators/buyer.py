"""A connector that buys: what it submits costs money, so that a crash must not submit it twice."""

from __future__ import annotations

import os
import signal
from typing import Any

from empd.connectors.base import Resumable
from empd.connectors.protocol.http import HTTPConnector


class BuyerConnector(HTTPConnector, Resumable):
    """Submits once, then asks how it is. Its worker dies at the first attempt, where the payload says so (or `always`).
    With `stays` it then waits to be cancelled."""

    connector_id = "buyer"

    async def process(self, job: Any, context: Any) -> Any:
        wish = context.payload
        upstream = context.upstream
        if upstream.handle is None or not upstream.handle.id:
            key = await upstream.intend("shop", deduplicates=wish["keyed"])
            options = {"idempotency_key": key} if wish["keyed"] else {}
            answer = await self.request("POST", "/buy", context, json={"key": key}, **options)
            self._die(job, wish, "unconfirmed")
            self._die(job, wish, "always")
            await upstream.submitted(answer.value()["id"])
            self._die(job, wish, "confirmed")
        if wish.get("stays"):
            await context.wait_cancelled()
        return {"id": upstream.handle.id, "attempt": job.attempt, "doubt": upstream.doubt}

    resume = process

    def _die(self, job: Any, wish: dict[str, Any], at: str) -> None:
        if wish["dies"] == at and (job.attempt == 1 or at == "always"):
            os.kill(os.getpid(), signal.SIGKILL)
