"""Configuration, opening and closing, health, and what a connector tells of its service."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from empd.connectors import registry
from empd.connectors.base import DescribesService, HasModels, Service
from empd.connectors.conformance.words import NOTHING, Failed, NotClaimed
from empd.connectors.conformance.world import Held, World

UNKNOWN_KEY = "no_connector_knows_this"
_SIMPLE = (msgspec.inspect.StrType, msgspec.inspect.IntType, msgspec.inspect.FloatType, msgspec.inspect.BoolType)
HEALTH_S_MAX = 15.0
_INFO_KEYS_MAX = 1_000


async def unknown_key(world: World) -> str:
    """An unknown key of `api_config` is refused by name."""
    return _refused(world, UNKNOWN_KEY, 1)


async def wrong_type(world: World) -> str:
    """A value of the wrong type is refused by its key's name."""
    fields = msgspec.inspect.type_info(world.case.connector.Config).fields  # type: ignore[attr-defined]
    key = next((field.encode_name for field in fields if isinstance(field.type, _SIMPLE)), None)
    if key is None:
        raise NotClaimed("its configuration has no plain value")
    return _refused(world, key, [{}])


def _refused(world: World, key: str, value: Any) -> str:
    try:
        registry.configure(world.case.connector, {**world.case.api_config, key: value}, "conformance")
    except registry.ConnectorUnavailable as error:
        if key not in str(error):
            raise Failed(f"the refusal does not name the key {key!r}: {error}") from None
        return str(error)
    raise Failed(f"it took {key}={value!r}")


async def health(world: World) -> str:
    """Health is true, false while the service is gone, and true again."""
    gate = world.gate
    connector = await world.opened()
    gate.break_all()
    if not await _probed(connector, False):
        if not gate.requests:
            raise NotClaimed("it asks the service nothing")
        raise Failed("true although the service is gone")
    reason = connector.reason
    if not reason:
        raise Failed("false, and no reason")
    await gate.mend()
    if not await _probed(connector, True):
        raise Failed(f"still false after the service came back: {connector.reason}")
    return f"false while it was gone ({reason})"


async def _probed(connector: Service, wanted: bool) -> bool:
    """Whether health comes to be so; a connection that is kept needs a moment to be lost, and to be there again."""
    clock = asyncio.get_running_loop().time
    end_s = clock() + HEALTH_S_MAX
    while await connector.probe() is not wanted:
        if clock() > end_s:
            return False
        await asyncio.sleep(0.02)
    return True


async def nothing_left(world: World) -> str:
    """After `close` no task, thread or socket is left."""
    await _cycle(world)  # what a library makes once for the process stays
    held = Held()
    await _cycle(world)
    left = await held.settled()
    if left:
        raise Failed(f"left after close: {', '.join(left[:5])}")
    return "no task, thread or socket"


async def _cycle(world: World) -> None:
    connector = world.build()
    try:
        if await connector.start() and world.case.payload is not NOTHING:
            await world.attempt(connector).value()
    finally:
        await connector.stop()


async def close_twice(world: World) -> str:
    """`close` may be called again, and without `open`."""
    connector = world.build()
    await _closes(connector, "without open")
    await connector.start()
    await connector.stop()
    await _closes(connector, "a second time")
    return "nothing happened"


async def _closes(connector: Any, how: str) -> None:
    try:
        await connector.close()
    except Exception as error:  # whatever foreign code raises is the finding
        raise Failed(f"close {how} raised {type(error).__name__}: {error}") from error


async def open_again(world: World) -> str:
    """It opens again after `close`; `open` on an open one leaks nothing."""
    await _cycle(world)
    held = Held()
    connector = world.build()
    for life in (2, 3):
        if not await connector.start():
            if world.case.server is None:
                raise NotClaimed(f"it does not open without its service: {connector.reason}")
            raise Failed(f"it did not open: {connector.reason}")
        await connector.open()
        if world.case.payload is not NOTHING:
            await world.attempt(connector, job_id=life).value()
        await connector.stop()
    left = await held.settled()
    if left:
        raise Failed(f"left after open twice and close: {', '.join(left[:5])}")
    return "two lives, nothing left"


async def models(world: World) -> str:
    """`models` is a list of names."""
    if not issubclass(world.case.connector, HasModels):
        raise NotClaimed("it does not tell models")
    _ = world.gate
    connector = await world.opened()
    assert isinstance(connector, HasModels)
    found = await connector.models()
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise Failed(f"not a list of names: {found!r:.200}")
    return f"{len(found)} models"


async def service_info(world: World) -> str:
    """`service_info` is an object that JSON can carry."""
    if not issubclass(world.case.connector, DescribesService):
        raise NotClaimed("it does not describe its service")
    _ = world.gate
    connector = await world.opened()
    assert isinstance(connector, DescribesService)
    found = await connector.service_info()
    if not isinstance(found, dict) or not found or len(found) > _INFO_KEYS_MAX:
        raise Failed(f"not an object with facts: {found!r:.200}")
    try:
        msgspec.json.encode(found)
    except (TypeError, msgspec.EncodeError) as error:
        raise Failed(f"JSON cannot carry it: {error}") from None
    return f"{', '.join(list(found)[:5])}"
