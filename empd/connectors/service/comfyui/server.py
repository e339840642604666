"""The HTTP calls of one ComfyUI instance. Source: `server.py` of 0.3.64; all routes also answer under `/api`."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NamedTuple

import aiohttp

from empd.connectors.context import Context
from empd.connectors.failures import BadResponse, ConnectorError, ServiceUnavailable
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.service.comfyui.outputs import OutputFile
from empd.connectors.service.comfyui.refusals import refused
from empd.connectors.service.comfyui.workflow import Graph

FILE_BYTES_MAX = 1 << 40


class Place(enum.Enum):
    """Where a prompt is. UNKNOWN: neither waiting, running nor in the history; absent is not done."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Queue(NamedTuple):
    """The ids of prompts; `pending` in the order in which they will run."""

    running: list[str]
    pending: list[str]


class Found(NamedTuple):
    """Where a prompt is. `entry` when it has ended; `ahead`: how many run and wait before a waiting one."""

    place: Place
    entry: Entry | None = None
    ahead: int = 0


class Entry(NamedTuple):
    """How a prompt ended. `error`: the data of its `execution_error`; `cached`: nodes that were not run again."""

    completed: bool
    interrupted: bool
    outputs: dict[str, Any]
    error: dict[str, Any]
    cached: list[str]
    execution_s: float


class Server:
    """One instance at `url`."""

    def __init__(self, http: HTTPConnector, url: str) -> None:
        self.url = url
        self._http = http

    async def submit(self, body: Mapping[str, Any], graph: Graph, context: Context) -> dict[str, Any]:
        """Hands a prompt over, once: ComfyUI takes the same `prompt_id` twice. Returns `node_errors`.

        Raises InvalidInput that names the node when the workflow is refused.
        """
        answer = await self._http.request(
            "POST", self._at("/prompt"), context, json=body, accept=(400,), once=True, endpoint="POST /prompt"
        )
        if answer.status == 400:
            raise refused(answer.json(), graph) or BadResponse(f"POST /prompt: {answer.text()[:200]}", retry=False)
        said = answer.json()
        taken = said.get("prompt_id") if isinstance(said, dict) else None
        if not isinstance(taken, str):
            raise BadResponse(f"POST /prompt: no prompt_id in the answer: {answer.text()[:200]}")
        if taken != body["prompt_id"]:
            await self.stop(taken)
            raise ServiceUnavailable("this ComfyUI is too old: it takes no prompt_id from its clients", retry=False)
        errors = said.get("node_errors")
        return errors if isinstance(errors, dict) else {}

    async def queue(self, context: Context | None = None) -> Queue:
        """What runs and what waits."""
        found = await self._get("/queue", context)
        # In heap order: a place in the queue is the rank by number.
        pending = sorted(found.get("queue_pending", ()), key=lambda item: item[0])
        return Queue([item[1] for item in found.get("queue_running", ())], [item[1] for item in pending])

    async def find(self, prompt_id: str, context: Context | None = None) -> Found:
        """Where a prompt is. The queue is asked first: a prompt that ends goes from there into the history at once."""
        queue = await self.queue(context)
        if prompt_id in queue.running:
            return Found(Place.RUNNING)
        if prompt_id in queue.pending:
            return Found(Place.PENDING, ahead=len(queue.running) + queue.pending.index(prompt_id))
        entry = await self.history(prompt_id, context)
        return Found(Place.UNKNOWN) if entry is None else Found(Place.ENDED, entry)

    async def history(self, prompt_id: str, context: Context | None = None) -> Entry | None:
        """How a prompt ended; None while it has not, or is not known."""
        found = await self._get("/history/{prompt_id}", context, prompt_id=prompt_id)
        entry = found.get(prompt_id)
        return _entry_of(entry) if isinstance(entry, dict) else None

    async def delete(self, prompt_ids: Iterable[str]) -> None:
        """Takes prompts out of the queue; those that run are not touched."""
        await self._post("/queue", {"delete": list(prompt_ids)})

    async def interrupt(self, prompt_id: str) -> None:
        """Stops this prompt at its next step, if it is the one that runs.

        Servers before 0.3.57 know no target and would stop whoever runs; so it is asked who that is first.
        """
        if prompt_id in (await self.queue()).running:
            await self._post("/interrupt", {"prompt_id": prompt_id})

    async def stop(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or interrupts it where it runs."""
        await self.delete((prompt_id,))
        await self.interrupt(prompt_id)

    async def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Has models unloaded, or cached outputs dropped, before the next prompt."""
        await self._post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    async def upload(self, name: str, content: bytes, subfolder: str, context: Context) -> str:
        """Sends an input file. Returns what `LoadImage` takes: the server may have chosen another name."""

        def form() -> aiohttp.FormData:
            made = aiohttp.FormData()
            made.add_field("image", content, filename=name, content_type="application/octet-stream")
            made.add_field("subfolder", subfolder)
            return made

        answer = await self._http.request(
            "POST", self._at("/upload/image"), context, data=form, repeatable=True, endpoint="POST /upload/image"
        )
        said = answer.json()
        return f"{said['subfolder']}/{said['name']}" if said.get("subfolder") else str(said["name"])

    @contextlib.asynccontextmanager
    async def view(self, file: OutputFile, context: Context) -> AsyncIterator[AsyncIterator[bytes]]:
        """A file's bytes as they come. Raises NotFound when it was deleted."""
        params = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        async with self._http.stream(
            "GET",
            self._at("/view"),
            context,
            params=params,
            endpoint="GET /view",
            response_bytes_max=FILE_BYTES_MAX,
        ) as stream:
            yield stream.chunks()

    async def stats(self) -> dict[str, Any]:
        """`/system_stats`: versions, RAM, and each device's VRAM."""
        return await self._get("/system_stats")

    async def choices(self, node_class: str, name: str) -> list[str]:
        """The values that an input of a node class may have, as the files of a loader; empty for an unknown class."""
        found = (await self._get("/object_info/{node_class}", node_class=node_class)).get(node_class, {})
        spec = found.get("input", {}).get("required", {}).get(name)
        values = spec[0] if isinstance(spec, list) and spec else []
        if values == "COMBO":  # node classes of the newer kind
            values = spec[1].get("options", []) if len(spec) > 1 else []
        return [str(value) for value in values] if isinstance(values, list) else []

    def _at(self, path: str) -> str:
        return self.url + path

    async def _get(self, path: str, context: Context | None = None, **path_args: str) -> dict[str, Any]:
        answer = await self._http.request("GET", self._at(path), context, path_args=path_args, endpoint=f"GET {path}")
        found = answer.json()
        if not isinstance(found, dict):
            raise BadResponse(f"GET {path}: expected an object")
        return found

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        await self._http.request("POST", self._at(path), json=body, repeatable=True, endpoint=f"POST {path}")


def _entry_of(entry: dict[str, Any]) -> Entry:
    status = entry.get("status") or {"status_str": "success", "completed": True, "messages": []}
    messages = [(m[0], m[1]) for m in status.get("messages", ()) if isinstance(m, list) and len(m) > 1]
    said = dict(messages)
    times = [data["timestamp"] for _, data in messages if isinstance(data.get("timestamp"), int)]
    return Entry(
        completed=bool(status.get("completed")) and status.get("status_str") == "success",
        interrupted="execution_interrupted" in said,
        outputs=entry.get("outputs") or {},
        error=said.get("execution_error", {}),
        cached=[str(node) for node in said.get("execution_cached", {}).get("nodes", ())],
        execution_s=(max(times) - min(times)) / 1000 if times else 0.0,
    )


def is_unreachable(error: ConnectorError) -> bool:
    """Whether a failed call says nothing of the prompt: the server may be there again in a moment."""
    return error.failure in ("unavailable", "timeout", "rate_limited") and error.retry
