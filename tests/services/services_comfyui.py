"""What the tests of the ComfyUI connectors share: a seam that keeps what is said and saved, graphs, a server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from empd.asset import AssetRef
from empd.connectors import registry
from empd.connectors.base import Site
from empd.connectors.context import Context, JobDetails, JobView
from empd.connectors.endpoints import Endpoints
from empd.connectors.service.comfyui.connector import ComfyUIConnector
from empd.job import format_id
from empd.media import media_type
from tests.doubles.comfyui import ComfyUIDouble

FAST = {"poll_interval_s": 0.2, "outage_s_max": 3.0, "retry": {"attempts_max": 2, "base_s": 0.05}}
WAIT_S = 60.0

Graph = dict[str, dict[str, Any]]


class Shelf:
    """Assets in memory: index, name, bytes, metadata."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, str, bytes, dict[str, Any]]] = []
        self.failing: Exception | None = None

    async def save(
        self, content: Any, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        if self.failing is not None:
            raise self.failing
        data = content if isinstance(content, bytes) else b"".join([chunk async for chunk in content])
        self.saved.append((output, name, data, dict(metadata or {})))
        digest = hashlib.sha256(data).hexdigest()
        return AssetRef(
            name=name, media_type=media_type(data, True), size_bytes=len(data), sha256=digest, output=output
        )


class Port:
    """A worker's side of a context."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.instance = "1f" * 16
        self.shelf = Shelf()
        self.fractions: list[float] = []
        self.messages: list[tuple[str, int, int]] = []
        self.partials: list[Any] = []
        self.lines: list[str] = []
        self.checkpoints: list[bytes] = []

    def assets(self, context: Any) -> Shelf:
        return self.shelf

    def progress(self, context: Any, fraction: float, message: str, step: int, steps: int) -> None:
        self.fractions.append(fraction)
        self.messages.append((message, step, steps))

    def partial(self, context: Any, value: Any) -> None:
        self.partials.append(value)

    def log(self, context: Any, text: str) -> None:
        self.lines.append(text)

    async def checkpoint(self, context: Any, data: bytes, doubt: str) -> None:
        self.checkpoints.append(data)


class Attempt:
    """One attempt at a job through a connector, as a worker makes it."""

    def __init__(
        self,
        connector: ComfyUIConnector,
        payload: Any,
        *,
        job_id: int = 7,
        epoch: int = 1 << 32,
        attempt: int = 1,
        checkpoint: bytes | None = None,
    ) -> None:
        self.port = Port()
        view = JobView(job_id, epoch, attempt, JobDetails(service="comfyui"), msgspec.msgpack.encode(payload))
        self.context = Context(self.port, view, 0)
        self.context.last_checkpoint = checkpoint
        self.connector = connector
        process = connector.process if checkpoint is None else connector.resume
        self.task = asyncio.create_task(process(view, self.context))

    async def value(self) -> dict[str, Any]:
        """The result."""
        result = await asyncio.wait_for(self.task, WAIT_S)
        return result.value

    async def stop(self, reason: str) -> None:
        """As a worker stops a job of a Cancellable connector."""
        self.context.mark_stopping(reason)
        await self.connector.cancel(self.context.job, self.context)

    @property
    def files(self) -> list[bytes]:
        """What was saved, in order."""
        return [data for _, _, data, _ in sorted(self.port.shelf.saved, key=lambda entry: entry[0])]


def connector_at(url: str, name: str = "ComfyUILocalConnector", slots: int = 4, **config: Any) -> ComfyUIConnector:
    """A connector for the instance at `url`."""
    kind = registry.load_class(name)
    site = Site(service="comfyui", max_concurrent_jobs=slots, endpoints=Endpoints(url))
    built = registry.build(kind, {**FAST, **config}, site)
    assert isinstance(built, ComfyUIConnector)
    return built


@contextlib.asynccontextmanager
async def opened(url: str, name: str = "ComfyUILocalConnector", **config: Any) -> AsyncIterator[ComfyUIConnector]:
    """The same, started; stopped at the end."""
    connector = connector_at(url, name, **config)
    assert await connector.start(), connector.reason
    try:
        yield connector
    finally:
        await connector.stop()


async def until(condition: Callable[[], Any], what: str, limit_s: float = WAIT_S) -> Any:
    """Polls until the condition is true; returns its value."""
    clock = asyncio.get_running_loop().time
    end_s = clock() + limit_s
    while not (value := condition()):
        assert clock() < end_s, f"waited {limit_s} s in vain for {what}"
        await asyncio.sleep(0.005)
    return value


# --- graphs ----------------------------------------------------------------------------------------------------------

BLUE = 0x0000FF


def picture(color: int = BLUE, width: int = 8, prefix: str = "empd-test") -> Graph:
    """One colour, inverted and saved."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 8, "batch_size": 1, "color": color}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def slow(nodes: int = 20, width: int = 128, color: int = BLUE) -> Graph:
    """Many nodes of stock ComfyUI, each of which takes a moment."""
    graph = picture(color, width)
    graph["1"]["inputs"]["height"] = width
    before = "1"
    for at in range(nodes):
        node = str(100 + at)
        inputs = {"image": [before, 0], "blur_radius": 15, "sigma": 5.0}
        graph[node] = {"class_type": "ImageBlur", "inputs": inputs}
        before = node
    graph["2"]["inputs"]["image"] = [before, 0]
    return graph


def sleeping(seconds: float = 0.3, steps: int = 6, color: int = BLUE, **more: Any) -> Graph:
    """Only the double has such a node."""
    graph = picture(color)
    inputs = {"image": ["1", 0], "seconds": seconds, "steps": steps, **more}
    graph["9"] = {"class_type": "Sleep", "inputs": inputs}
    graph["2"]["inputs"]["image"] = ["9", 0]
    return graph


def with_output(class_type: str, color: int = BLUE, **inputs: Any) -> Graph:
    """One colour, inverted, and given to this output node (id 4)."""
    graph = picture(color)
    del graph["3"]
    graph["4"] = {"class_type": class_type, "inputs": {"images": ["2", 0], **inputs}}
    return graph


def failing(kind: str, message: str = "boom") -> Any:
    """A graph whose node 9 raises."""
    graph = picture()
    graph["9"] = {"class_type": "RaiseError", "inputs": {"image": ["1", 0], "exception_type": kind, "message": message}}
    graph["2"]["inputs"]["image"] = ["9", 0]
    return graph


Body = Callable[[ComfyUIDouble, ComfyUIConnector], Awaitable[None]]


def against_the_double(
    body: Body, name: str = "ComfyUILocalConnector", double: dict[str, Any] | None = None, **config: Any
) -> None:
    """Runs a test's body; whatever it did, no prompt was submitted before someone listened, and none was hit that
    nobody wanted to hit."""

    async def run() -> None:
        async with ComfyUIDouble(**(double or {})) as server, opened(server.url, name, **config) as connector:
            await body(server, connector)
            assert server.counts.deaf_submissions == 0
            assert server.counts.interrupts_global == 0

    asyncio.run(run())


async def running(server: ComfyUIDouble, job: Attempt) -> str:
    """Waits until a job's prompt runs; its id."""

    def prompt_id() -> str:
        assert not job.task.done(), job.task.exception()
        found = server.running.prompt_id if server.running and job.port.fractions else ""
        return found if f"-{format_id(job.context.job_id)}-" in found else ""

    return await until(prompt_id, "the prompt to run")
