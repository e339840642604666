"""One workflow with many sets of parameters: each its own prompt, progress, retries and result."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from empd.connectors.base import Result
from empd.connectors.context import CHECKPOINT_BYTES_MAX, Context, JobView
from empd.connectors.failures import ConnectorError
from empd.connectors.service.batch_item import settle_item
from empd.connectors.service.comfyui.advanced import ComfyUIAdvancedConnector
from empd.connectors.service.comfyui.request import Batch, Request, read_batch
from empd.connectors.service.comfyui.run import Earlier, Label, Run
from empd.errors import FailureClass
from empd.job import format_id

OUTPUTS_PER_ITEM = 1_000
"""Output indexes of items are this far apart, so that an item's files keep their names whatever the others make."""

_ROOM_BYTES = CHECKPOINT_BYTES_MAX * 3 // 4


class ComfyUIBatchConnector(ComfyUIAdvancedConnector):
    """Payload: `workflow` or `template`, and `items`: for each, what ComfyUIAdvancedConnector takes (`parameters`,
    `seed`, `files`, `outputs`); `shared` holds for all.

    Items run one after the other; one that fails is tried again (`item_retries`), then the others go on, or the job
    fails (`on_failure`). What is done is journaled with its results, as far as there is room: the next attempt does not
    run it again.
    """

    connector_id: ClassVar[str] = "comfyui-batch"

    async def process(self, job: JobView, context: Context) -> Any:
        """Runs every item. The job fails when all have failed."""
        await context.load()
        batch, requests = read_batch(context.payload, self.config.templates_dir, job.id)
        done = _Done(context)
        for index, request in enumerate(requests):
            if str(index) not in done.values:
                done.values[str(index)] = await self._item(context, batch, (index, request), done)
            context.progress((index + 1) / len(requests))
        await self.tidy()
        items = [done.values[str(index)] for index in range(len(requests))]
        failed = [item for item in items if "error" in item]
        if len(failed) == len(items):
            error = failed[0]["error"]
            text = f"all {len(items)} items failed; the first: {error['message']}"
            raise ConnectorError(text, failure=FailureClass(error["failure"]), retry=error["retry"])
        execution_s = sum(item.get("execution_s", 0.0) for item in items)
        value = {"items": items, "completed": len(items) - len(failed), "failed": len(failed)}
        return Result(value, usage={"execution_s": execution_s, "items": float(len(items))})

    async def _item(self, context: Context, batch: Batch, item: tuple[int, Request], done: _Done) -> dict[str, Any]:
        """The result of one item, or its error. Raises what is no fault of the item."""
        index = item[0]

        async def run(attempt: int) -> dict[str, Any]:
            return await self._run_item(context, item, len(batch.items), (attempt, done))

        ended = await settle_item(index, batch, context, run)
        if isinstance(ended, ConnectorError):
            told = {"failure": ended.failure.value, "message": ended.message, "retry": ended.retry}
            return {"index": index, "error": told}
        return {"index": index, **ended}

    async def _run_item(
        self, context: Context, item: tuple[int, Request], count: int, state: tuple[int, _Done]
    ) -> dict[str, Any]:
        index, request = item
        attempt, done = state

        def report(fraction: float, message: str, step: int, steps: int) -> None:
            context.progress((index + fraction) / count, f"item {index + 1} of {count}: {message}", step, steps)
            context.partial({"kind": "item", "index": index, "progress": round(fraction, 4), "message": message})

        stem = f"{context.instance}-{format_id(context.job_id)}-{index}-"
        run = Run(self, context, _copy(request), Label(stem, f".{attempt}", index * OUTPUTS_PER_ITEM), report)
        earlier, done.earlier = (done.earlier if done.current == index else Earlier()), Earlier()
        return await self.follow(run, earlier, context, lambda prompt_id, url: done.intend(index, prompt_id, url))


class _Done:
    """What is journaled of a batch: the results of items, and the prompt of the one that runs."""

    def __init__(self, context: Context) -> None:
        handle = context.upstream.handle
        extra = handle.extra if handle is not None else {}
        self.values: dict[str, dict[str, Any]] = dict(extra.get("done", {}))
        self.current = extra.get("item", -1)
        self.earlier = Earlier()
        if handle is not None and not handle.ended:
            self.earlier = Earlier(handle.id, str(extra.get("url", "")))
        self._context = context

    async def intend(self, index: int, prompt_id: str, url: str) -> None:
        """Journals what is done, and the prompt that is about to be submitted."""
        room = _ROOM_BYTES
        kept: dict[str, Any] = {}
        for key, value in reversed(self.values.items()):
            if "error" in value:
                continue  # another attempt may have better luck with it
            plain = msgspec.to_builtins(value)
            room -= len(msgspec.msgpack.encode(plain))
            if room < 0:
                break
            kept[key] = plain
        extra = {"url": url, "item": index, "done": kept}
        await self._context.upstream.intend("comfyui", prompt_id, extra=extra)


def _copy(request: Request) -> Request:
    """Uploads put other names into the workflow; another try begins with the sender's."""
    return msgspec.structs.replace(request, graph=msgspec.msgpack.decode(msgspec.msgpack.encode(request.graph)))
