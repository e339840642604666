"""Callables of every kind, as an operator might write them. Loaded by workers of the tests by name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from empd.connectors.base import Cancellable, ConnectorConfig, HasModels, Result, Resumable, Service
from empd.connectors.failures import ConnectorError, RefusedByService
from empd.connectors.service.callables import Partial


def square(payload, context):
    return {"value": payload["x"] ** 2}


def alone(payload):
    return [payload, threading.current_thread() is threading.main_thread()]


async def square_async(payload, context):
    await asyncio.sleep(0)
    return payload["x"] ** 2


def counting(payload, context):
    for i in range(1, payload + 1):
        yield i / payload
    yield Partial({"half": True})
    yield (1.0, "nearly")
    return {"counted": payload}


async def counting_async(payload, context):
    for i in range(1, payload + 1):
        yield i / payload, f"step {i}"
        await asyncio.sleep(0)
    yield Result({"counted": payload}, {"steps": float(payload)})


class Model:
    """Loaded once; tells how often and in which process."""

    setups = 0

    def setup(self, scale=1):
        Model.setups += 1
        self.scale = scale

    def process(self, payload, context):
        return [payload * self.scale, Model.setups, os.getpid()]

    def teardown(self):
        Path(os.environ["TEARDOWN_FILE"]).write_text("done")


class AsyncModel:
    async def setup(self):
        self.loaded = True

    async def process(self, payload, context):
        return self.loaded


def bad(payload, context):
    kind = payload["raise"]
    if kind == "exit":
        sys.exit(3)
    if kind == "refused":
        raise RefusedByService("not this", evidence="policy 7")
    raise {"value": ValueError, "memory": MemoryError, "timeout": TimeoutError}[kind]("as asked")


def unencodable(payload, context):
    return object()


def large(payload, context):
    return b"z" * payload


def nap(payload, context):
    """Cannot be stopped but by killing its process."""
    mark(payload, "began")
    time.sleep(3600)


def attentive(payload, context):
    """Looks whether it is to stop."""
    mark(payload, "began")
    while not context.cancelled:
        threading.Event().wait(0.005)
    raise RuntimeError("stopped half way")


async def nap_async(payload, context):
    mark(payload, "began")
    try:
        await asyncio.sleep(3600)
    finally:
        mark(payload, "ended")


def nap_generator(payload, context):
    try:
        for i in range(1_000_000):
            mark(payload, "began")
            threading.Event().wait(0.005)
            yield i / 1_000_000
    finally:
        mark(payload, "ended")


async def nap_async_generator(payload, context):
    try:
        while True:
            yield 0.5
            mark(payload, "began")
            await asyncio.sleep(0.005)
    finally:
        mark(payload, "ended")


def die(payload, context):
    how = payload["die"] if isinstance(payload, dict) else payload
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segv":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(5)
    return os.getpid()


def talk(payload, context):
    """Uses everything that a plain function's context has."""
    context.log("a line", n=1)
    context.progress(0.5, "half way", 1, 2)
    context.partial({"so": "far"})
    context.checkpoint(b"point")
    version, data = context.state_get("cursor")
    version = context.state_set("cursor", b"next", version)
    return [context.last_checkpoint, version, data, context.attempt, context.job_id, context.deadline_s is not None]


async def talk_async(payload, context):
    context.log("a line", n=1)
    context.progress(0.5, "half way", 1, 2)
    context.partial({"so": "far"})
    await context.checkpoint(b"point")
    version, data = await context.state_get("cursor")
    version = await context.state_set("cursor", b"next", version)
    return [context.last_checkpoint, version, data, context.attempt, context.job_id, context.deadline_s is not None]


def chatty(payload, context):
    for _ in range(payload):
        context.log("x" * 99)


def earlier(payload, context):
    return context.last_checkpoint


def secret(payload, context):
    return dict(context.secrets)


def hoard(payload, context):
    hoarded.append(bytearray(os.urandom(1 << 20) * payload))
    return len(hoarded)


hoarded: list[bytearray] = []


def mark(directory, name):
    Path(directory, name).touch()


async def touch_then_nap(payload, context):
    mark(payload["dir"], f"{context.job_id}-{context.epoch}")
    await asyncio.sleep(payload["s"])
    return "rested"


async def checkpoint_then_die(payload, context):
    if context.last_checkpoint is None:
        await context.checkpoint(b"half way")
        os.kill(os.getpid(), signal.SIGKILL)
    return [context.attempt, context.last_checkpoint]


def tells_secret(payload, context):
    key = os.environ["THE_KEY"]
    context.log(f"using {key}")
    raise RuntimeError(f"the key is {key}")


class TellsInSetup:
    def setup(self):
        raise RuntimeError(f"no login with {os.environ['THE_KEY']}")

    def process(self, payload, context):
        return None


class AbleConfig(ConnectorConfig):
    directory: str


class Able(Service, Cancellable, Resumable, HasModels):
    """A connector with abilities, found by its path."""

    Config = AbleConfig

    async def models(self):
        return ["sdxl"]

    async def process(self, job, context):
        mark(self.config.directory, "began")
        self.interrupted = asyncio.Event()
        await self.interrupted.wait()
        raise ConnectorError("upstream says: interrupted")

    async def resume(self, job, context):
        return f"resumed {context.last_checkpoint.decode()}"

    async def cancel(self, job, context):
        mark(self.config.directory, "interrupted")
        self.interrupted.set()


class Loaded(Service, HasModels):
    """Has one model loaded, which is called as its worker."""

    async def models(self):
        return [self.site.worker]

    async def process(self, job, context):
        return self.site.worker
