"""Many pictures in one job: each item its own task, progress, retries and result."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from empd.connectors.base import Result, Resumable
from empd.connectors.context import CHECKPOINT_BYTES_MAX, Context, JobView
from empd.connectors.failures import ConnectorError, InvalidInput
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.request import Request, read_request
from empd.connectors.service.batch_item import settle_item
from empd.errors import FailureClass

ITEMS_MAX = 10_000
OUTPUTS_PER_ITEM = 1_000
"""Output indexes of items are this far apart, so that an item's files keep their names whatever the others make."""

_ROOM_BYTES = CHECKPOINT_BYTES_MAX * 3 // 4


class Batch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`shared` holds for all `items`. `item_retries`: how often an item is tried again in this attempt at the job;
    `on_failure`: what follows when it has failed for good."""

    items: list[dict[str, Any]]
    shared: dict[str, Any] = {}
    item_retries: int = 1
    on_failure: str = "continue"
    save_assets: bool = True
    ctx: dict[str, Any] = {}


class A1111BatchConnector(A1111Connector, Resumable):
    """Payload: `items` (each what A1111RestConnector takes) and `shared`. Items run one after the other; one that fails
    is tried again, then the others go on, or the job fails (`on_failure`: `continue` or `fail`). What is done is
    journaled, as far as there is room: the next attempt does not make it again."""

    connector_id: ClassVar[str] = "a1111-batch"

    async def process(self, job: JobView, context: Context) -> Any:
        """Runs every item. The job fails when all have failed."""
        batch, requests = self._read(await context.load())
        handle = context.upstream.handle
        done: dict[str, Any] = dict(handle.extra.get("done", {})) if handle is not None else {}
        for index, request in enumerate(requests):
            if str(index) not in done:
                done[str(index)] = await self._item(context, batch, (index, request), done)
                if "error" not in done[str(index)]:
                    await context.upstream.ended(done=_kept(done))
            context.progress((index + 1) / len(requests))
        await self.tidy()
        items = [done[str(index)] for index in range(len(requests))]
        failed = [item["error"] for item in items if "error" in item]
        if len(failed) == len(items):
            text = f"all {len(items)} items failed; the first: {failed[0]['message']}"
            raise ConnectorError(text, failure=FailureClass(failed[0]["failure"]), retry=False)
        images = sum(len(item.get("images", ())) for item in items)
        value = {"items": items, "completed": len(items) - len(failed), "failed": len(failed)}
        return Result(value, usage={"images": float(images), "items": float(len(items))})

    async def resume(self, job: JobView, context: Context) -> Any:
        """As `process`, which knows what earlier attempts have done."""
        return await self.process(job, context)

    def _read(self, payload: Any) -> tuple[Batch, list[Request]]:
        try:
            batch = msgspec.convert(payload, Batch)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error)) from None
        if not 0 < len(batch.items) <= ITEMS_MAX:
            raise InvalidInput(f"items: {len(batch.items)} of them; accepted: 1 to {ITEMS_MAX}")
        if batch.on_failure not in ("continue", "fail"):
            raise InvalidInput(f"on_failure: {batch.on_failure!r}; accepted: continue, fail")
        requests = []
        for index, item in enumerate(batch.items):
            try:
                request = read_request({**batch.shared, **item}, self.config.operation, self.config.defaults)
            except InvalidInput as error:
                raise InvalidInput(f"items[{index}]: {error.message}") from None
            if not request.makes_pictures:
                raise InvalidInput(f"items[{index}].operation: {request.operation} makes no pictures")
            requests.append(request)
        return batch, requests

    async def _item(
        self, context: Context, batch: Batch, item: tuple[int, Request], done: dict[str, Any]
    ) -> dict[str, Any]:
        """An item's result, or its error. Raises what is no fault of the item."""
        (index, request), count = item, len(batch.items)

        def report(fraction: float, message: str, step: int, steps: int) -> None:
            context.progress((index + fraction) / count, f"item {index + 1} of {count}: {message}", step, steps)

        async def run(attempt: int) -> dict[str, Any]:
            output = await self.pictures(request, context, report, f".{index}.{attempt}", {"done": _kept(done)})
            return await self.saved(output, request, context, index * OUTPUTS_PER_ITEM)

        ended = await settle_item(index, batch, context, run)
        if isinstance(ended, ConnectorError):
            return {"index": index, "error": {"failure": ended.failure.value, "message": ended.message}}
        return {"index": index, **ended}


def _kept(done: dict[str, Any]) -> dict[str, Any]:
    """The latest items that have their pictures, as many as are journaled: another attempt may have better luck with
    the others."""
    room, kept = _ROOM_BYTES, {}
    for index, item in reversed(done.items()):
        if "error" in item:
            continue
        plain = msgspec.to_builtins(item)
        room -= len(msgspec.msgpack.encode(plain)) + 9
        if room < 0:
            break
        kept[index] = plain
    return kept
