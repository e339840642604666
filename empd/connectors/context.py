"""What a job brings to a connector, and all that a connector can say while it works.

The worker stands behind `JobPort`; a connector sees only `JobView` and `Context` (or `SyncContext`, the same for
code in a thread). Objects of this module are made once per job on the hot path: attributes that most jobs never
touch have their defaults on the class.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from empd.asset import AssetContent, AssetRef
from empd.clock import NS_PER_S
from empd.connectors.failures import InvalidInput
from empd.connectors.upstream import Upstream
from empd.payload import BlobRef, Carried, decode_value, encode_value

CHECKPOINT_BYTES_MAX = 64 * 1024


class JobDetails(msgspec.Struct, frozen=True):
    """What jobs of one group have in common."""

    service: str = ""
    encoding: str = "msgpack"
    customer_id: str | None = None
    workflow_id: str | None = None
    labels: dict[str, str] | None = None
    model_keys: tuple[str, ...] = ()
    requirements: dict[str, Any] | None = None
    priority: int = 50
    trace: str | None = None


class JobView(msgspec.Struct, gc=False):
    """One attempt at one job. (`id`, `epoch`) names it for ever; `attempt` counts from 1."""

    id: int
    epoch: int
    attempt: int
    details: JobDetails
    carried: Carried

    @property
    def service(self) -> str:
        """The job type that was asked for."""
        return self.details.service

    def with_payload(self, value: Any) -> JobView:
        """The same attempt with another payload. Raises TypeError when the value has no msgpack form."""
        encoding, data = encode_value(value)
        details = msgspec.structs.replace(self.details, encoding=encoding)
        return JobView(self.id, self.epoch, self.attempt, details, bytes(data))


class AssetPort(Protocol):
    """Where an attempt's files go."""

    async def save(
        self, content: AssetContent, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        """Saves the `output`-th file of this job and returns when it can be had: bytes, base64 or a data URL, a path,
        or a stream of chunks. `name` is what the user calls it; `metadata` is kept with it."""


class JobPort(Protocol):
    """What the worker does for a context. All but the awaitables return at once and never raise."""

    secrets: Mapping[str, str]
    instance: str
    """The id of the state directory: job ids are unique within one."""

    def assets(self, context: Context) -> AssetPort:
        """Where this attempt's files go."""

    def progress(self, context: Context, fraction: float, message: str, step: int, steps: int) -> None:
        """Passes progress on."""

    def partial(self, context: Context, value: Any) -> None:
        """Passes a partial result on."""

    def log(self, context: Context, text: str) -> None:
        """Keeps a line of the job's log."""

    async def checkpoint(self, context: Context, data: bytes, doubt: str) -> None:
        """Returns when the checkpoint is durable."""

    async def state_get(self, key: str) -> tuple[int, bytes]:
        """Version (0: none) and bytes."""

    async def state_set(self, context: Context, key: str, data: bytes, expected_version: int) -> int:
        """The new version."""

    def read_blob(self, ref: BlobRef) -> bytes:
        """The blob's bytes."""

    def view_blob(self, ref: BlobRef) -> memoryview:
        """The blob, mapped."""


class Context:
    """A connector's way to see and tell, for one attempt. Use it in the event loop's thread."""

    timeout_s: float = 0.0
    last_checkpoint: bytes | None = None
    stop_reason: str = ""
    fraction: float = 0.0
    log_bytes: int = 0
    moved_ns: int = 0
    _payload: Any = None
    _decoded: JobView | None = None
    _event: asyncio.Event | None = None
    assets_used: AssetPort | None = None
    _upstream: Upstream | None = None
    span = ""
    """The traceparent of this attempt's own span, where one is made."""
    on_progress: Callable[[float, str], None] | None = None
    """Told of all progress, where the log is to have it."""

    def __init__(self, port: JobPort, job: JobView, started_ns: int) -> None:
        self.port = port
        self.job = job
        self.started_ns = started_ns

    @property
    def payload(self) -> Any:
        """The payload as a value: decoded JSON or msgpack, or bytes. Raises InvalidInput when it cannot be decoded."""
        job = self.job
        if self._decoded is not job:  # a plugin may have put another payload in its place
            carried = job.carried
            try:
                if isinstance(carried, bytes):
                    self._payload = decode_value(job.details.encoding, carried)
                else:
                    self._payload = decode_value(carried.encoding, self.port.read_blob(carried))
            except (ValueError, TypeError, UnicodeDecodeError) as error:
                raise InvalidInput(str(error)) from None
            self._decoded = job
        return self._payload

    async def load(self) -> Any:
        """As `payload`; a large one is read off the event loop."""
        if self._decoded is not self.job and isinstance(self.job.carried, BlobRef):
            return await asyncio.to_thread(lambda: self.payload)
        return self.payload

    @property
    def payload_bytes(self) -> bytes:
        """The payload as it came."""
        carried = self.job.carried
        return carried if isinstance(carried, bytes) else self.port.read_blob(carried)

    def payload_view(self) -> memoryview:
        """The payload without a copy: large ones are mapped."""
        carried = self.job.carried
        return memoryview(carried) if isinstance(carried, bytes) else self.port.view_blob(carried)

    @property
    def job_id(self) -> int:
        """The job's id."""
        return self.job.id

    @property
    def epoch(self) -> int:
        """The number of this assignment: larger than that of any earlier attempt."""
        return self.job.epoch

    @property
    def attempt(self) -> int:
        """Counts from 1."""
        return self.job.attempt

    @property
    def secrets(self) -> Mapping[str, str]:
        """The environment variables that the connector's `required_env` names."""
        return self.port.secrets

    @property
    def instance(self) -> str:
        """The id of the state directory: job ids are unique within one."""
        return self.port.instance

    @property
    def trace(self) -> str:
        """The W3C traceparent under which this attempt calls others; empty when nobody traces the job."""
        return self.span or self.job.details.trace or ""

    @property
    def assets(self) -> AssetPort:
        """Where this attempt's files are saved."""
        if self.assets_used is None:
            self.assets_used = self.port.assets(self)
        return self.assets_used

    @property
    def upstream(self) -> Upstream:
        """What earlier attempts have given to the service behind the connector, and this one's dealings with it."""
        if self._upstream is None:
            self._upstream = Upstream(self)
        return self._upstream

    @property
    def idempotency_key(self) -> str:
        """For a service that does work with the same key once: it changes only when the former submission is known to
        have ended."""
        return self.upstream.key

    @property
    def cancelled(self) -> bool:
        """True from the moment that this job is to stop."""
        return self.stop_reason != ""

    async def wait_cancelled(self) -> None:
        """Returns when this job is to stop."""
        if self._event is None:
            self._event = asyncio.Event()
            if self.stop_reason:
                self._event.set()
        await self._event.wait()

    def mark_stopping(self, reason: str) -> None:
        """For the worker: the job is to stop, because of `reason`."""
        self.stop_reason = reason
        if self._event is not None:
            self._event.set()

    @property
    def deadline_s(self) -> float | None:
        """The moment on `clock` at which the run limit is reached; None without one."""
        return self.started_ns / NS_PER_S + self.timeout_s if self.timeout_s > 0 else None

    def clock(self) -> float:
        """Steady seconds, comparable with `deadline_s`."""
        return time.monotonic()

    def progress(self, fraction: float, message: str = "", step: int = 0, steps: int = 0) -> None:
        """Says how far the job is: `fraction` 0…1; it never falls. Cheap: at most ten a second leave the worker."""
        self.fraction = max(self.fraction, min(1.0, float(fraction)))
        self.port.progress(self, self.fraction, message, step, steps)
        if self.on_progress is not None:
            self.on_progress(self.fraction, message)

    def partial(self, value: Any) -> None:
        """Shows a partial result to whoever watches; it may be lost."""
        self.port.partial(self, value)

    def log(self, message: str, **fields: Any) -> None:
        """One line of this job's log, bounded by `job_log_bytes_max` for each attempt."""
        self.port.log(self, f"{message} {render_fields(fields)}" if fields else message)

    async def checkpoint(self, data: bytes, doubt: str = "") -> None:
        """Journals what the next attempt gets as `last_checkpoint`; ≤ 64 KiB. Returns when it is durable. `doubt`: what
        may have been done twice because of this attempt; the job shows it from then on."""
        check_checkpoint(data)
        await self.port.checkpoint(self, data, doubt)
        self.last_checkpoint = data

    async def state_get(self, key: str) -> tuple[int, bytes]:
        """The connector's own state under `key`: version (0: there is none) and bytes."""
        return await self.port.state_get(key)

    async def state_set(self, key: str, data: bytes, expected_version: int) -> int:
        """Sets it, if its version still is `expected_version`; returns the new one.

        Raises StateConflict when the version or this attempt is stale.
        """
        return await self.port.state_set(self, key, data, expected_version)


class Bridge(Protocol):
    """How code outside the event loop's thread reaches a context."""

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Has `function` called soon."""

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Blocks until the coroutine is done; returns its value."""


class ThreadBridge:
    """From another thread of the same process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """See Bridge.call."""
        self._loop.call_soon_threadsafe(function, *args)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """See Bridge.wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class SyncAssets:
    """An `AssetPort` for plain functions."""

    def __init__(self, port: AssetPort, bridge: Bridge) -> None:
        self._port = port
        self._bridge = bridge

    def save(
        self,
        content: bytes | str | os.PathLike[str],
        *,
        output: int = 0,
        name: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> AssetRef:
        """See AssetPort.save; blocks until the file can be had."""
        found: AssetRef = self._bridge.wait(self._port.save(content, output=output, name=name, metadata=metadata))
        return found


class SyncContext:
    """A `Context` for plain functions: the same names, with calls that block instead of await."""

    def __init__(self, context: Context, bridge: Bridge) -> None:
        self._context = context
        self._bridge = bridge
        self.job = context.job

    @property
    def payload(self) -> Any:
        """See Context.payload."""
        return self._context.payload

    def payload_view(self) -> memoryview:
        """See Context.payload_view."""
        return self._context.payload_view()

    @property
    def job_id(self) -> int:
        """The job's id."""
        return self.job.id

    @property
    def epoch(self) -> int:
        """See Context.epoch."""
        return self.job.epoch

    @property
    def attempt(self) -> int:
        """Counts from 1."""
        return self.job.attempt

    @property
    def cancelled(self) -> bool:
        """True from the moment that this job is to stop; long loops should look."""
        return self._context.cancelled

    @property
    def deadline_s(self) -> float | None:
        """See Context.deadline_s."""
        return self._context.deadline_s

    @property
    def secrets(self) -> Mapping[str, str]:
        """See Context.secrets."""
        return self._context.secrets

    @property
    def last_checkpoint(self) -> bytes | None:
        """What the last attempt left."""
        return self._context.last_checkpoint

    @property
    def assets(self) -> SyncAssets:
        """Where this attempt's files are saved."""
        return SyncAssets(self._context.assets, self._bridge)

    @property
    def trace(self) -> str:
        """See Context.trace."""
        return self._context.trace

    @property
    def idempotency_key(self) -> str:
        """See Context.idempotency_key."""
        return self._context.idempotency_key

    def clock(self) -> float:
        """Steady seconds."""
        return time.monotonic()

    def progress(self, fraction: float, message: str = "", step: int = 0, steps: int = 0) -> None:
        """See Context.progress."""
        self._bridge.call(self._context.progress, fraction, message, step, steps)

    def partial(self, value: Any) -> None:
        """See Context.partial."""
        self._bridge.call(self._context.partial, value)

    def log(self, message: str, **fields: Any) -> None:
        """See Context.log."""
        text = f"{message} {render_fields(fields)}" if fields else message
        self._bridge.call(self._context.log, text)

    def checkpoint(self, data: bytes) -> None:
        """See Context.checkpoint; blocks until it is durable."""
        self._bridge.wait(self._context.checkpoint(data))

    def state_get(self, key: str) -> tuple[int, bytes]:
        """See Context.state_get."""
        version, data = self._bridge.wait(self._context.state_get(key))
        return version, data

    def state_set(self, key: str, data: bytes, expected_version: int) -> int:
        """See Context.state_set."""
        return int(self._bridge.wait(self._context.state_set(key, data, expected_version)))


def check_checkpoint(data: bytes) -> None:
    """Raises ValueError when `data` is too large for a checkpoint."""
    if len(data) > CHECKPOINT_BYTES_MAX:
        raise ValueError(f"a checkpoint has at most {CHECKPOINT_BYTES_MAX} bytes, this one has {len(data)}")


def render_fields(fields: Mapping[str, Any]) -> str:
    """Log fields as `name=value` words."""
    return " ".join(f"{name}={value}" for name, value in fields.items())
