"""What service connectors are tested with: an opened connector, contexts, and a store that keeps assets in memory."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec

from empd.asset import AssetContent, AssetRef
from empd.connectors import registry
from empd.connectors.base import Service, Site
from empd.connectors.context import Context, JobDetails, JobView
from empd.connectors.logger import ConnectorLogger
from empd.media import media_type
from tests.connectors.test_connectors_seam import Port

FAST: dict[str, Any] = {"base_s": 0.001, "cap_s": 0.002}


class Store:
    """Keeps what is saved, by output."""

    def __init__(self) -> None:
        self.saved: dict[int, bytes] = {}

    async def save(
        self, content: AssetContent, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        if isinstance(content, str):
            data = base64.b64decode(content.partition(",")[2] or content)
        elif isinstance(content, (bytes, bytearray, memoryview)):
            data = bytes(content)
        else:
            data = b"".join([chunk async for chunk in content])  # type: ignore[union-attr]
        self.saved[output] = data
        digest = hashlib.sha256(data).hexdigest()
        return AssetRef(
            name=f"{output}",
            media_type=media_type(data, whole=True),
            size_bytes=len(data),
            sha256=digest,
            output=output,
        )


class ServicePort(Port):
    """A port with a store behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()

    def assets(self, context: Any) -> Store:
        return self.store

    def partials(self) -> list[Any]:
        return [said[1] for said in self.said if said[0] == "partial"]

    def fractions(self) -> list[float]:
        return [said[1] for said in self.said if said[0] == "progress"]

    def lines(self) -> list[str]:
        return [said[1] for said in self.said if said[0] == "log"]

    def checkpoints(self) -> list[bytes]:
        return [said[1] for said in self.said if said[0] == "checkpoint"]


def context_of(payload: Any, checkpoint: bytes | None = None, epoch: int = 9, timeout_s: float = 60.0) -> Context:
    """A context for an attempt that begins now."""
    loop_now_ns = int(asyncio.get_running_loop().time() * 1e9)
    job = JobView(1, epoch, 1, JobDetails(service="s"), msgspec.msgpack.encode(payload))
    context = Context(ServicePort(), job, loop_now_ns)
    context.timeout_s = timeout_s
    context.last_checkpoint = checkpoint
    return context


def port_of(context: Context) -> ServicePort:
    """The port behind a context."""
    assert isinstance(context.port, ServicePort)
    return context.port


def with_service(
    kind: type[Service], config: dict[str, Any], use: Callable[[Any], Awaitable[Any]], records: list[Any] | None = None
) -> Any:
    """What `use(connector)` gives for an opened connector; it is closed afterwards, and nothing of it is left."""
    logger = ConnectorLogger.to(records.append, "debug") if records is not None else None

    async def run() -> Any:
        site = Site(service="s", **({"logger": logger} if logger else {}))
        connector = registry.build(kind, config, site)
        assert await connector.start(), connector.reason
        try:
            return await use(connector)
        finally:
            await connector.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(run())


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a result."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, dict):
        for item in plain.values():
            yield from texts_in(item)
    elif isinstance(plain, list):
        for item in plain:
            yield from texts_in(item)
