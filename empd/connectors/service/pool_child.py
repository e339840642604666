"""One process of a pool: loads the callable once, then does one job after the other for the worker that started it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from empd import lines
from empd.asset import AssetContent, AssetRef
from empd.connectors.base import Result
from empd.connectors.context import AssetPort, Context, JobView, SyncContext
from empd.connectors.failures import BadResponse, ConnectorError, StateConflict, describe
from empd.connectors.service import callables
from empd.connectors.service.pool_wire import (
    LENGTH_BYTES,
    Answer,
    Ask,
    Close,
    Finished,
    Job,
    Load,
    LogLine,
    Message,
    PartialValue,
    Progress,
    Ready,
    ToProcess,
    decode_to_process,
    encode,
    error_of,
    failure_of,
)
from empd.payload import BlobRef

LARGE_FILES_DIR = "/var/tmp"
"""/tmp may be memory."""

_PR_SET_PDEATHSIG = 1
_pack = msgspec.msgpack.Encoder().encode


def main(fd: int) -> None:
    """Serves until the worker closes the socket."""
    lines.keep_whole()
    with socket.socket(fileno=fd) as peer, asyncio.Runner() as runner:
        Process(peer, runner).serve()


class Inline:
    """A bridge for code that is alone in its process: everything happens at once."""

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Calls it."""
        function(*args)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine that never waits for the loop: the port behind it blocks instead."""
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        raise RuntimeError("a call in a pool process must not wait for the event loop")


class PoolAssets:
    """Hands files to the worker, which saves them."""

    def __init__(self, ask: Callable[[Ask], Answer]) -> None:
        self._ask = ask

    async def save(
        self, content: AssetContent, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        """See AssetPort.save; blocks."""
        extra = dict(metadata) if metadata is not None else None

        def saved(verb: str, data: bytes) -> AssetRef:
            return msgspec.msgpack.decode(self._ask(Ask(verb, name, data, 0, output, extra)).data, type=AssetRef)

        if isinstance(content, str):
            return saved("asset_text", content.encode())
        if isinstance(content, os.PathLike):
            return saved("asset_path", os.fsencode(os.path.abspath(content)))
        if isinstance(content, (bytes, bytearray, memoryview)):
            return saved("asset", bytes(content))
        # As large as it may be it must not lie in memory, neither here nor in the worker.
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", LARGE_FILES_DIR)) as file:
            if isinstance(content, AsyncIterable):
                async for chunk in content:
                    file.write(chunk)
            elif hasattr(content, "read"):
                shutil.copyfileobj(content, file)
            else:
                raise TypeError(f"a {type(content).__name__} cannot be saved as an asset")
            file.flush()
            return saved("asset_path", f"/proc/{os.getpid()}/fd/{file.fileno()}".encode())


class Process:
    """The process's end of the socket, and the JobPort of its jobs."""

    def __init__(self, peer: socket.socket, runner: asyncio.Runner) -> None:
        self._peer = peer
        self._runner = runner
        self._lock = threading.Lock()
        self.secrets: Mapping[str, str] = {}
        self.instance = ""

    def serve(self) -> None:
        """Loads, then does jobs."""
        load = self._receive()
        if not isinstance(load, Load):
            return
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != load.parent_pid:
            return  # the worker died before the line above could tell the kernel
        self.secrets = {name: os.environ.get(name, "") for name in load.secrets}
        try:
            loaded = callables.load(load.target, load.python_path)
            self._runner.run(callables.prepare(loaded, load.options, _at_once))
        except Exception as error:  # the operator's code; the worker shows the reason
            self._send(Ready(False, describe(error), error.retry if isinstance(error, ConnectorError) else True))
            return
        self._send(Ready(loaded.is_async))
        while isinstance(message := self._receive(), Job):
            self._send(self._do(loaded, message))
        if isinstance(message, Close):
            self._runner.run(callables.dismantle(loaded, _at_once))

    def _do(self, loaded: callables.Loaded, message: Job) -> Message:
        job = JobView(message.id, message.epoch, message.attempt, message.details, message.payload)
        context = Context(self, job, message.started_ns)
        context.timeout_s, context.last_checkpoint = message.timeout_s, message.checkpoint
        self.instance = message.instance
        try:
            if loaded.is_async:
                value = self._runner.run(callables.run_async(loaded, context.payload, context))
            else:
                value = callables.run(loaded, context.payload, SyncContext(context, Inline()))
            usage = None
            if isinstance(value, Result):
                value, usage = value.value, value.usage
            return Finished(_encoded(value), usage)
        except BaseException as error:  # foreign code: its job fails, the process goes on
            return failure_of(error)

    # --- JobPort -----------------------------------------------------------------------------------------------------

    def progress(self, context: Context, fraction: float, message: str, step: int, steps: int) -> None:
        """To the worker."""
        self._send(Progress(fraction, message, step, steps))

    def partial(self, context: Context, value: Any) -> None:
        """To the worker; what cannot be encoded is dropped, as partial results may be."""
        try:
            self._send(PartialValue(_encoded(value)))
        except BadResponse:
            return

    def log(self, context: Context, text: str) -> None:
        """To the worker."""
        self._send(LogLine(text))

    async def checkpoint(self, context: Context, data: bytes, doubt: str) -> None:
        """Blocks until it is durable."""
        self.ask(Ask("checkpoint", doubt, data))

    async def state_get(self, key: str) -> tuple[int, bytes]:
        """Blocks for the answer."""
        answer = self.ask(Ask("state_get", key))
        return answer.version, answer.data

    async def state_set(self, context: Context, key: str, data: bytes, expected_version: int) -> int:
        """Blocks until it is durable."""
        return self.ask(Ask("state_set", key, data, expected_version)).version

    def assets(self, context: Context) -> AssetPort:
        """Through the worker."""
        return PoolAssets(self.ask)

    def read_blob(self, ref: BlobRef) -> bytes:
        """Never called: the worker sends payloads whole."""
        raise BadResponse("a pool process has no arena")

    def view_blob(self, ref: BlobRef) -> memoryview:
        """As `read_blob`."""
        raise BadResponse("a pool process has no arena")

    def ask(self, ask: Ask) -> Answer:
        """The worker's answer. Raises what it answers with."""
        self._send(ask)
        answer = self._receive()
        if not isinstance(answer, Answer):
            raise EOFError("the worker is gone")
        if answer.failure is not None:
            raise error_of(answer.failure)
        if answer.error:
            raise StateConflict(answer.error)
        return answer

    # --- bytes -------------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        with self._lock:
            self._peer.sendall(encode(message))

    def _receive(self) -> ToProcess | None:
        head = self._exactly(LENGTH_BYTES)
        body = self._exactly(int.from_bytes(head, "big")) if head else b""
        return decode_to_process(body) if body else None

    def _exactly(self, count: int) -> bytes:
        """That many bytes; nothing when the worker has closed."""
        buffer = bytearray(count)
        view, have = memoryview(buffer), 0
        while have < count:
            try:
                got = self._peer.recv_into(view[have:])
            except ConnectionResetError:  # it was killed before it had read all that was sent to it
                return b""
            if not got:
                return b""
            have += got
        return bytes(buffer)


async def _at_once(function: Callable[[], Any]) -> Any:
    return function()


def _encoded(value: Any) -> bytes:
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadResponse(f"the result cannot be encoded: {describe(error)}", retry=False) from None
