"""What a connector makes of messages that are not as they should be, and of a connection that breaks in mid-job."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from empd.connectors.base import Service
from empd.connectors.conformance.talk import Break, Frame, MessageFault
from empd.connectors.conformance.words import NOTHING, Failed, NotClaimed
from empd.connectors.conformance.world import WAIT_S_MAX, Attempt, World
from empd.connectors.failures import ConnectorError

GARBAGE: tuple[Frame, ...] = (
    "",
    "{",
    "not a message",
    "null",
    "[]",
    '"text"',
    "17",
    "1e999",
    "{}",
    '{"type": 7, "id": {"a": []}}',
    '{"type": null, "id": null}',
    "[" * 5_000,
    '{"a":' * 5_000,
    b"",
    b"\x00\xff\xfe" * 100,
    b"\x93\x01\x02",
)

HEARTBEAT = {"heartbeat_interval_s": 0.2, "pong_timeout_s": 0.3}
"""Short enough to be waited for."""


async def garbage_messages(world: World) -> str:
    """Messages that nobody can read end no job, and no connection."""
    return await _unmoved(world, lambda frame: (*GARBAGE, frame), f"{len(GARBAGE)} kinds of them before each message")


async def foreign_messages(world: World) -> str:
    """Messages about work that is nobody's change nothing."""
    if world.case.identity is None:
        raise NotClaimed("the case does not say what names the work (identity)")
    identity, other = world.case.identity, str(uuid.UUID(int=17))

    def change(frame: Frame) -> Iterable[Frame]:
        strange = frame
        for request in world.submissions():
            strange = _renamed(strange, identity(request), other)
        return (strange, frame) if strange != frame else (frame,)

    return await _unmoved(world, change, "each message was said of unknown work first")


async def repeated_messages(world: World) -> str:
    """Messages that come again, at once and later, are one result, and touch no other job."""
    past: list[Frame] = []

    def change(frame: Frame) -> Iterable[Frame]:
        past.append(frame)
        return (frame, *past)

    return await _unmoved(world, change, "with each message all before it came again")


async def dropped_connection(world: World) -> str:
    """A connection that breaks in mid-job loses nothing: the job is taken up, or comes again."""
    return await _broken(world, "dropped")


async def half_closed_connection(world: World) -> str:
    """A connection that its service has closed on one side is a broken one."""
    return await _broken(world, "half_closed")


async def silent_connection(world: World) -> str:
    """A connection that stays and is silent, also to heartbeats, is a broken one when the deadline has passed."""
    _ = world.talk
    if all(map(world.has, HEARTBEAT)):
        return await _broken(world, "silent", **HEARTBEAT)
    if world.has_one_socket:
        raise NotClaimed("its configuration has no heartbeat")
    return await _broken(world, "silent")


async def _unmoved(world: World, change: Callable[[Frame], Iterable[Frame]], how: str) -> str:
    """Jobs beside each other and the next one end as if the messages were as they should be, on the same connection;
    one that takes long does not end by what was said of others."""
    talk = world.talk
    connector = await world.opened()
    whole = await _whole(world, connector)
    connections = _connections(world)
    others = None
    if world.has_one_socket and world.case.submits and world.case.long_payload is not NOTHING:
        others = world.long_job(connector, job_id=9)
        await world.until(lambda: len(world.submissions()) > 1, "the submission", others)
    talk.fault = fault = MessageFault(change)
    for attempt in [world.attempt(connector, job_id=number) for number in (2, 3)]:
        _same(world, await (await _over(attempt)).value(), whole)
    if not fault.struck:
        raise NotClaimed("the service says nothing that could be changed")
    _same(world, await (await _over(world.attempt(connector, job_id=4))).value(), whole)
    talk.fault = None
    if world.has_one_socket and _connections(world) > connections:
        raise Failed("it gave up the connection, which all jobs share")
    _begun_once(world, 4 + (others is not None))
    if others is not None:
        if others.task.done():
            raise Failed(f"a job ended by what was said of others: {await others.outcome()!r:.200}")
        await others.stop()
    return how


def _connections(world: World) -> int:
    return len(world.gate.matching(("GET *",)))


async def _broken(world: World, how: Break, **config: Any) -> str:
    talk = world.talk
    connector = await world.opened(**config)
    before = len(talk.told)
    whole = await _whole(world, connector)
    # The first message is often the one that names the work; the break is to come after it, where there is another.
    talk.fault = fault = MessageFault(breaks=how, after=min(1, len(talk.told) - before - 1))
    attempt = await _over(world.attempt(connector, job_id=2))
    if not fault.struck:
        raise NotClaimed("the service says too little for a break in mid-job")
    said = await _outcome(world, attempt, whole)
    talk.fault = None
    _same(world, await (await _over(world.attempt(connector, job_id=3))).value(), whole)
    _begun_once(world, 3)
    return f"{said}; the next job was well"


async def _over(attempt: Attempt) -> Attempt:
    """An attempt that has ended."""
    await asyncio.wait([attempt.task], timeout=WAIT_S_MAX)
    if not attempt.task.done():
        raise Failed(f"a job still waits {WAIT_S_MAX:g} s later")
    return attempt


async def _outcome(world: World, attempt: Attempt, whole: bytes) -> str:
    """Taken up, or a failure that lets the job come again."""
    found = await attempt.outcome()
    if isinstance(found, ConnectorError):
        if not found.retry:
            raise Failed(f"the job is given up for good: {found}")
        return f"it comes again ({found.failure})"
    _same(world, found, whole)
    return "it was taken up"


async def _whole(world: World, connector: Service) -> bytes:
    if world.case.payload is NOTHING:
        raise NotClaimed("no payload to submit")
    whole = msgspec.msgpack.encode(await world.attempt(connector).value())
    if not world.talk.told:
        raise NotClaimed("its service says nothing over a WebSocket")
    return whole


def _same(world: World, value: Any, whole: bytes) -> None:
    """A result that HTTP gives may name the job."""
    if world.has_one_socket and msgspec.msgpack.encode(value) != whole:
        raise Failed(f"the result is another: {value!r:.200}")


def _begun_once(world: World, jobs: int) -> None:
    executions = world.executions()
    if executions is not None and executions > jobs:
        raise Failed(f"the service began the work of {jobs} jobs {executions} times")


def _renamed(frame: Frame, name: str, other: str) -> Frame:
    return frame.replace(name.encode(), other.encode()) if isinstance(frame, bytes) else frame.replace(name, other)
