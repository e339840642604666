"""Long-lived processes for plain functions that must not share a process: each does one job at a time.

One that dies, or is killed because its job was cancelled, takes no other job with it and is replaced when needed.
(concurrent.futures.ProcessPoolExecutor is broken for ever by one death, and cannot stop a single call.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from empd.asset import AssetContent
from empd.connectors.base import Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError, ProcessCrashed, ServiceUnavailable, StateConflict, describe
from empd.connectors.service.pool_wire import (
    LENGTH_BYTES,
    Answer,
    Ask,
    Close,
    Failure,
    Finished,
    FromProcess,
    Job,
    Load,
    LogLine,
    Message,
    PartialValue,
    Progress,
    Ready,
    decode_from_process,
    encode,
    error_of,
    failure_of,
)

CLOSE_S_MAX = 3.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from empd.connectors.service.pool_child import main; main(int(sys.argv[2]))"
)


class PoolProcess:
    """One process and the worker's end of its socket."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.is_async = False
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, load: Load) -> PoolProcess:
        """Starts one and waits until it has loaded. Raises ConnectorError with its reason when it cannot."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        found = cls(process, reader, writer)
        try:
            found.send(load)
            ready = await found.receive()
        except BaseException:  # cancelled, or not a message: no process may be left behind
            await found.kill()
            raise
        if ready is None or not isinstance(ready, Ready) or ready.reason:
            status = await found.kill()
            reason = (
                ready.reason if isinstance(ready, Ready) else f"its process died while loading: {how_it_died(status)}"
            )
            raise ConnectorError(reason, retry=isinstance(ready, Ready) and ready.retry)
        found.is_async = ready.is_async
        return found

    def send(self, message: Message) -> None:
        """Sends without waiting."""
        self._writer.write(encode(message))

    async def receive(self) -> FromProcess | None:
        """The next message; None when the process has closed its end."""
        try:
            head = await self._reader.readexactly(LENGTH_BYTES)
            return decode_from_process(await self._reader.readexactly(int.from_bytes(head, "big")))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def kill(self) -> int:
        """Kills it with its process group; returns its wait status once it is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return await self.dead()

    async def dead(self) -> int:
        """Its wait status, once it is dead."""
        if self.process.poll() is None:
            loop = asyncio.get_running_loop()
            gone: asyncio.Future[None] = loop.create_future()
            pidfd = os.pidfd_open(self.process.pid)
            loop.add_reader(pidfd, lambda: None if gone.done() else gone.set_result(None))
            try:
                await gone
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
        self._writer.close()
        return self.process.wait()

    async def close(self) -> None:
        """Lets it tear down; kills it when that takes too long."""
        if self.process.poll() is None:
            self.send(Close())
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await self.dead()
                return
            except TimeoutError:
                pass
        await self.kill()


class ProcessPool:
    """Up to `count` processes for one callable, started when they are needed."""

    def __init__(
        self, target: str, options: Mapping[str, Any], count: int, python_path: tuple[str, ...], secrets: list[str]
    ) -> None:
        self._load = Load(target, dict(options), list(python_path), secrets, os.getpid())
        self._places = asyncio.Semaphore(count)
        self._idle: list[PoolProcess] = []

    async def probe(self) -> bool:
        """Starts the first process; tells whether the callable is async. Raises ConnectorError when it cannot load."""
        first = await PoolProcess.spawn(self._load)
        self._idle.append(first)
        return first.is_async

    async def run(self, job: JobView, context: Context) -> Any:
        """Does one job in a process of its own. When cancelled, that process is killed, and no other."""
        async with self._places:
            process = await self._take()
            try:
                value = await self._converse(process, job, context)
            except ConnectorError:
                if process.process.poll() is None:
                    self._idle.append(process)
                raise
            except BaseException:  # cancelled: what the process does now nobody wants any more
                await asyncio.shield(process.kill())
                raise
            self._idle.append(process)
            return value

    async def close(self) -> None:
        """Ends all processes."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(process.close() for process in idle))

    async def _take(self) -> PoolProcess:
        while self._idle:
            process = self._idle.pop()
            if process.process.poll() is None:
                return process
            await process.dead()
        try:
            return await PoolProcess.spawn(self._load)
        except ConnectorError as error:
            raise ServiceUnavailable(error.message) from error

    async def _converse(self, process: PoolProcess, job: JobView, context: Context) -> Any:
        carried = job.carried
        encoding = job.details.encoding if isinstance(carried, bytes) else carried.encoding
        payload = carried if isinstance(carried, bytes) else await asyncio.to_thread(lambda: context.payload_bytes)
        details = (
            job.details if encoding == job.details.encoding else msgspec.structs.replace(job.details, encoding=encoding)
        )
        process.send(
            Job(
                job.id,
                job.epoch,
                job.attempt,
                details,
                payload,
                encoding,
                context.started_ns,
                context.timeout_s,
                context.last_checkpoint,
                context.instance,
            )
        )
        while (message := await process.receive()) is not None:
            match message:
                case Progress(fraction, text, step, steps):
                    context.progress(fraction, text, step, steps)
                case PartialValue(data):
                    context.partial(msgspec.Raw(data))
                case LogLine(text):
                    context.log(text)
                case Ask():
                    process.send(await _answer(message, context))
                case Finished(data, usage):
                    return Result(msgspec.Raw(data), usage) if usage else msgspec.Raw(data)
                case Failure():
                    raise error_of(message)
                case Ready():
                    continue
        status = await process.kill()
        raise ProcessCrashed(f"the process of this job died: {how_it_died(status)}")


async def _answer(ask: Ask, context: Context) -> Answer:
    try:
        match ask.verb:
            case "checkpoint":
                await context.checkpoint(ask.data, ask.key)
                return Answer(0, b"")
            case "state_get":
                return Answer(*await context.state_get(ask.key))
            case "state_set":
                return Answer(await context.state_set(ask.key, ask.data, ask.expected_version), b"")
            case _:
                return await _save(ask, context)
    except (StateConflict, ValueError) as error:
        return Answer(0, b"", str(error))


async def _save(ask: Ask, context: Context) -> Answer:
    content: AssetContent = ask.data
    if ask.verb == "asset_text":
        content = ask.data.decode()
    elif ask.verb == "asset_path":
        content = Path(os.fsdecode(ask.data))
    try:
        ref = await context.assets.save(content, output=ask.output, name=ask.key, metadata=ask.metadata)
    except Exception as error:  # whatever it is goes to the callable that asked
        return Answer(0, b"", describe(error), failure_of(error))
    return Answer(0, msgspec.msgpack.encode(ref))


def how_it_died(status: int) -> str:
    """A return code of subprocess in words."""
    if status >= 0:
        return f"exit status {status}"
    return signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
