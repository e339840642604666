"""The world that one check takes place in: the service, gates, connectors, attempts, and what was said."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self

import msgspec

from empd.asset import AssetContent, AssetRef
from empd.connectors import registry
from empd.connectors.base import Cancellable, Result, Resumable, Service, Site
from empd.connectors.conformance.gate import Fault, Gate, HTTPGate, Recorded
from empd.connectors.conformance.gates import gate_for
from empd.connectors.conformance.talk import Talk
from empd.connectors.conformance.words import NOTHING, Case, Failed, NotClaimed, Server
from empd.connectors.context import Context, JobDetails, JobView
from empd.connectors.endpoints import Endpoints
from empd.connectors.failures import ConnectorError, ServiceUnavailable, describe
from empd.connectors.logger import ConnectorLogger
from empd.connectors.upstream import UpstreamHandle
from empd.media import media_type
from empd.payload import BlobRef

END_S_MAX = 10.0
"""How long an attempt may take to end after it was told to stop, whatever grace its class asks for."""

WAIT_S_MAX = 30.0
"""How long something that must come may take, on a machine that has much else to do."""

SETTLE_S_MAX = 5.0
"""How long what a closed connector held may take to be gone."""

FIRST_EPOCH = 1 << 32
_SOON: dict[str, Any] = {
    "retry": {"base_s": 0.001, "cap_s": 0.002},
    "reconnect": {"base_s": 0.01, "cap_s": 0.02},
    "poll_interval_s": 0.02,
    "poll_interval_s_max": 0.05,
    "reconnect_s": 0.01,
}
"""Waits made short, where a connector's configuration has these keys and the case does not set them."""


class Shelf:
    """Where the files of jobs go: nowhere, but their metadata is true."""

    async def save(
        self, content: AssetContent, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        """See AssetPort.save."""
        data = await _bytes_of(content)
        return AssetRef(
            name=name or f"{output}",
            media_type=media_type(data, whole=True),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            output=output,
        )


async def _bytes_of(content: AssetContent) -> bytes:
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, (str, os.PathLike)):
        return os.fsencode(content)
    if hasattr(content, "read"):
        found: bytes = await asyncio.to_thread(content.read)
        return found
    return b"".join([chunk async for chunk in content])


class Port:
    """The worker's side of a context: keeps what is said."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.secrets = secrets
        self.instance = "c0" * 16
        self.texts: list[str] = []
        self.checkpoints: list[bytes] = []
        self.doubts: list[str] = []
        self.shelf = Shelf()
        self._states: dict[str, tuple[int, bytes]] = {}

    def assets(self, context: Context) -> Shelf:
        """See JobPort.assets."""
        return self.shelf

    def progress(self, context: Context, fraction: float, message: str, step: int, steps: int) -> None:
        """See JobPort.progress."""
        self.texts.append(message)

    def partial(self, context: Context, value: Any) -> None:
        """See JobPort.partial."""

    def log(self, context: Context, text: str) -> None:
        """See JobPort.log."""
        self.texts.append(text)

    async def checkpoint(self, context: Context, data: bytes, doubt: str) -> None:
        """See JobPort.checkpoint."""
        self.checkpoints.append(data)
        self.doubts += [doubt] if doubt else []
        self.texts.append(data.decode(errors="replace"))

    async def state_get(self, key: str) -> tuple[int, bytes]:
        """See JobPort.state_get."""
        return self._states.get(key, (0, b""))

    async def state_set(self, context: Context, key: str, data: bytes, expected_version: int) -> int:
        """See JobPort.state_set."""
        self._states[key] = (expected_version + 1, data)
        return expected_version + 1

    def read_blob(self, ref: BlobRef) -> bytes:
        """See JobPort.read_blob: the kit's payloads are inline."""
        raise ServiceUnavailable("the conformance kit has no blobs")

    def view_blob(self, ref: BlobRef) -> memoryview:
        """See JobPort.view_blob."""
        return memoryview(self.read_blob(ref))


class KitContext(Context):
    """A context that keeps each progress as the connector says it, before the base makes it monotonic."""

    def __init__(self, port: Port, job: JobView) -> None:
        super().__init__(port, job, time.monotonic_ns())
        self.timeout_s = 120.0
        self.told: list[tuple[float, float]] = []

    def progress(self, fraction: float, message: str = "", step: int = 0, steps: int = 0) -> None:
        """See Context.progress."""
        self.told.append((self.clock(), fraction))
        super().progress(fraction, message, step, steps)


class Attempt:
    """One attempt at a job, as a worker makes it."""

    def __init__(self, connector: Service, port: Port, job: JobView, checkpoint: bytes | None = None) -> None:
        self.connector = connector
        self.context = KitContext(port, job)
        self.context.last_checkpoint = checkpoint
        self.port = port
        verb = connector.process
        if checkpoint is not None and isinstance(connector, Resumable):
            verb = connector.resume
        self.task: asyncio.Task[Any] = asyncio.ensure_future(verb(job, self.context))

    async def stop(self, reason: str = "cancelled") -> None:
        """As a worker stops a job: by its own cancel where it has one, then by its task; returns when it has ended."""
        connector = self.connector
        self.context.mark_stopping(reason)
        grace_s = min(END_S_MAX, connector.cancel_grace_s) if isinstance(connector, Cancellable) else 0.0
        if isinstance(connector, Cancellable):
            async with asyncio.timeout(END_S_MAX):
                await connector.cancel(self.context.job, self.context)
            await asyncio.wait([self.task], timeout=grace_s)
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task], timeout=END_S_MAX)
        if not self.task.done():
            raise Failed(f"the job had not ended {END_S_MAX:g} s after it was told to stop")

    async def outcome(self) -> Any:
        """The value, or the ConnectorError. Raises Failed for any other exception."""
        try:
            value = await self.task
        except ConnectorError as error:
            return error
        except Exception as error:  # whatever foreign code raises is the finding
            raise Failed(f"it raised {describe(error)}, which is no ConnectorError") from error
        return value.value if isinstance(value, Result) else value

    async def value(self) -> Any:
        """The value. Raises Failed."""
        found = await self.outcome()
        if isinstance(found, ConnectorError):
            raise Failed(f"the job failed ({found.failure}): {describe(found)} {found.evidence[:300]}".rstrip())
        return found

    async def error(self) -> ConnectorError:
        """The failure. Raises Failed when there is a result."""
        found = await self.outcome()
        if not isinstance(found, ConnectorError):
            raise Failed(f"it took this for a result: {found!r:.200}")
        return found

    @property
    def handle(self) -> UpstreamHandle | None:
        """What the last checkpoint says of the upstream."""
        return UpstreamHandle.decode(self.context.last_checkpoint)


class World:
    """One check's world; an asynchronous context manager."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.server = Server()
        self.gates: list[Gate] = []
        self.said: list[Any] = []
        self.ports: list[Port] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self.case.server is not None:
            self.server = await self._stack.enter_async_context(self.case.server())
            await self.new_gate()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    # --- what there is ---

    @property
    def gate(self) -> Gate:
        """The gate through which connectors reach the service. Raises NotClaimed where there is no service."""
        if not self.gates:
            raise NotClaimed("no service to ask: the case names no server")
        return self.gates[-1]

    @property
    def calls(self) -> Gate:
        """The same, where faults can be injected into single requests."""
        gate = self.gate
        if self.case.transport not in ("http", "grpc"):
            raise NotClaimed(f"over {self.case.transport} there are no single requests to answer")
        return self.counted(gate)

    @property
    def talk(self) -> Talk:
        """What is said through the gate, where faults can be injected into single messages."""
        gate = self.gate
        if not isinstance(gate, HTTPGate):
            raise NotClaimed(f"over {self.case.transport} there are no single messages to change")
        return gate.talk

    @property
    def has_one_socket(self) -> bool:
        """Whether all jobs share one WebSocket, and nothing else is said; else their own ones tell beside HTTP."""
        return self.case.transport == "websocket"

    def counted(self, gate: Gate) -> Gate:
        """The gate, where it can tell submissions from what else is asked. Raises NotClaimed."""
        if not self.case.submits:
            raise NotClaimed("the case does not say which requests submit work")
        return gate

    async def new_gate(self) -> Gate:
        """Another way to the same service, for connectors made from now on."""
        gate = gate_for(self.case.transport, self.server.url)
        await gate.start()
        self._stack.push_async_callback(gate.close)
        self.gates.append(gate)
        return gate

    def has(self, key: str) -> bool:
        """Whether the connector can be configured with this key."""
        return key in self.case.connector.Config.__struct_fields__

    def setting(self, key: str) -> Any:
        """A configured value; None where there is no such key."""
        return getattr(registry.configure(self.case.connector, self.config(), "conformance"), key, None)

    def config(self, **more: Any) -> dict[str, Any]:
        """The configuration: the case's, with short waits."""
        given = {**self.case.api_config, **more}
        for key, value in _SOON.items():
            if self.has(key) and key not in given:
                given[key] = value
            elif isinstance(value, dict) and isinstance(given.get(key), dict):
                given[key] = {**value, **given[key]}
        return given

    # --- connectors and attempts ---

    def build(self, **more: Any) -> Service:
        """A connector that is not open."""
        secrets = {name: self.case.environ[name] for name in self.case.connector.environment_needed()}
        site = Site(
            service="conformance",
            max_concurrent_jobs=4,
            python_path=self.case.python_path,
            isolation=self.case.isolation,
            secrets=secrets,
            log=lambda event, **fields: self.said.append((event, fields)),
            logger=ConnectorLogger.to(self.said.append, "debug"),
            endpoints=Endpoints(self.gates[-1].url if self.gates else ""),
            report=lambda key, value: self.said.append((key, value)),
        )
        try:
            connector = registry.build(self.case.connector, self.config(**more), site)
        except registry.ConnectorUnavailable as error:
            raise Failed(str(error)) from None
        assert isinstance(connector, Service)
        return connector

    async def opened(self, **more: Any) -> Service:
        """A connector that takes jobs; it is closed when the check ends. Raises Failed."""
        connector = self.build(**more)
        self._stack.push_async_callback(connector.stop)
        if not await connector.start():
            if self.case.server is None:
                raise NotClaimed(f"no service to ask: {connector.reason}")
            raise Failed(f"it does not take jobs: {connector.reason}")
        return connector

    def attempt(
        self, connector: Service, payload: Any = NOTHING, *, job_id: int = 1, after: Attempt | None = None
    ) -> Attempt:
        """An attempt at a job; `after`: the next one at the same job, which gets that one's checkpoint."""
        payload = self.case.payload if payload is NOTHING else payload
        if payload is NOTHING:
            raise NotClaimed("no payload to submit")
        number = 1 if after is None else after.context.attempt + 1
        details = JobDetails(service="conformance", encoding="msgpack")
        job = JobView(job_id, FIRST_EPOCH + number, number, details, msgspec.msgpack.encode(payload))
        port = Port(self.case.environ) if after is None else after.port
        self.ports.append(port)
        attempt = Attempt(connector, port, job, after.context.last_checkpoint if after is not None else None)
        self._stack.push_async_callback(_ended, attempt.task)
        return attempt

    def long_job(self, connector: Service, *, job_id: int = 2) -> Attempt:
        """An attempt at a job that does not end by itself while a check takes."""
        if self.case.long_payload is not NOTHING:
            return self.attempt(connector, self.case.long_payload, job_id=job_id)
        self.calls.inject(Fault(self.case.submits, times=1, held=asyncio.Event()))
        return self.attempt(connector, job_id=job_id)

    async def until(self, condition: Callable[[], Any], what: str, attempt: Attempt | None = None) -> None:
        """Waits for something. Raises Failed when an attempt ends before it, or after WAIT_S_MAX."""
        clock = asyncio.get_running_loop().time
        end_s = clock() + WAIT_S_MAX
        while not condition():
            if attempt is not None and attempt.task.done():
                await attempt.value()
                raise Failed(f"the job ended before {what}")
            if clock() > end_s:
                raise Failed(f"waited {WAIT_S_MAX:g} s in vain for {what}")
            await asyncio.sleep(0.005)

    # --- what was done ---

    def submissions(self) -> list[Recorded]:
        """The requests that submitted work, through all gates."""
        return [request for gate in self.gates for request in gate.matching(self.case.submits)]

    def reached(self) -> list[Recorded]:
        """Those of them that the service got."""
        return [request for request in self.submissions() if request.reached]

    def cancels(self) -> list[Recorded]:
        """The requests that stop work."""
        return [request for gate in self.gates for request in gate.matching(self.case.cancels)]

    def executions(self) -> int | None:
        """How much work the service has begun, where it counts."""
        return self.server.executions() if self.server.executions is not None else None


async def _ended(task: asyncio.Task[Any]) -> None:
    """Whatever an attempt comes to after its check, it is over."""
    task.cancel()
    await asyncio.wait([task], timeout=END_S_MAX)
    if task.done() and not task.cancelled():
        task.exception()


class Held:
    """What this process holds: tasks, threads, sockets. `growth`: what has come since, or was thrown away open."""

    def __init__(self) -> None:
        gc.collect()
        self._held = _held()
        self._thrown: list[str] = []
        # Client libraries say here what was collected before it was closed.
        asyncio.get_running_loop().set_exception_handler(lambda loop, said: self._thrown.append(str(said["message"])))

    def growth(self) -> list[str]:
        """What is held beyond that, in words."""
        # Counted by name, not by identity: a server in the same loop makes new tasks for old ones.
        grown = _held() - self._held
        return [*self._thrown, *(f"{count} × {name}" for name, count in grown.items())]

    async def settled(self) -> list[str]:
        """The growth that stays."""
        clock = asyncio.get_running_loop().time
        end_s = clock() + SETTLE_S_MAX
        gc.collect()
        while (found := self.growth()) and not self._thrown and clock() < end_s:
            await asyncio.sleep(0.01)
        return found


def _held() -> Counter[str]:
    found = Counter(f"task {getattr(task.get_coro(), '__qualname__', '')}" for task in asyncio.all_tasks())
    # The event loop's own pool keeps its threads.
    found.update(f"thread {thread.name}" for thread in threading.enumerate() if not thread.name.startswith("asyncio_"))
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found["socket"] += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found
