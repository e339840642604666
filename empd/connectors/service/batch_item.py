"""One item of a batch: tried as often as the batch says; how it ended is a partial result of the job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError
from empd.job import Cause


class ItemRules(Protocol):
    """What a batch says of its items. `on_failure` "fail": the first item that fails ends the job."""

    @property
    def item_retries(self) -> int:
        """Further tries of an item."""

    @property
    def on_failure(self) -> str:
        """What a failed item means for the job."""


async def settle_item(
    index: int, rules: ItemRules, context: Context, run: Callable[[int], Awaitable[dict[str, Any]]]
) -> dict[str, Any] | ConnectorError:
    """What `run(attempt)` gives for the item (attempts count from 0), or the error that it ended with.

    Raises what is no fault of the item, and what ends the batch.
    """
    attempt = 0
    while True:
        try:
            value = await run(attempt)
        except ConnectorError as error:
            last = attempt == rules.item_retries or not error.retry
            if context.cancelled or error.cause is not Cause.JOB_FAULT or (last and rules.on_failure == "fail"):
                raise
            context.log("item failed", item=index, failure=error.failure.value, reason=error.message)
            if last:
                context.partial({"kind": "item", "index": index, "completed": False})
                return error
            attempt += 1
        else:
            context.partial({"kind": "item", "index": index, "completed": True})
            return value
