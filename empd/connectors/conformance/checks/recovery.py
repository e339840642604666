"""A worker that dies in the middle of a job: its successor leads to one piece of work upstream, or says its doubt."""

from __future__ import annotations

import asyncio

from empd.connectors.base import Resumable
from empd.connectors.conformance.gate import Fault
from empd.connectors.conformance.words import Failed, NotClaimed, carried_key
from empd.connectors.conformance.world import Attempt, World
from empd.connectors.failures import ConnectorError


async def resume(world: World) -> str:
    """A job whose worker died after the submission is taken up: there is one submission, and one result."""
    if not issubclass(world.case.connector, Resumable):
        raise NotClaimed("it does not resume")
    world.counted(world.gate)
    first = world.attempt(await world.opened())
    await world.until(
        lambda: first.task.done() or (first.handle is not None and first.handle.id and any(_answered(world))),
        "a journaled submission",
    )
    if first.handle is None or not first.handle.id:
        await first.value()
        raise Failed("it ended without having journaled what it submitted")
    second = await _succeed(world, first)
    await second.value()
    return _one_submission(world, "the successor took it up")


async def same_submission(world: World) -> str:
    """A submission whose answer was lost with its worker is the same one when it is sent again."""
    _ = world.calls
    connector = await world.opened()
    claims = world.case.identity is not None or bool(world.setting("idempotency_header"))
    fault = world.gate.inject(Fault(world.case.submits, lost=True))
    first = world.attempt(connector)
    await world.until(lambda: first.task.done() or any(r.ended == "broken" for r in world.reached()), "the lost answer")
    assert fault.struck
    if not claims and first.context.last_checkpoint is None:
        raise NotClaimed("it names no submission (no idempotency key, no chosen id, no journaled intent)")
    second = await _succeed(world, first)
    found = await second.outcome()
    if not claims:
        said = [*second.port.doubts, *(text for text in second.port.texts if "had arrived" in text)]
        if not said:
            raise Failed(
                "it journals its intent, and the successor neither says that it had nor shows that it may have arrived"
            )
        return f"it is told: {said[0]}"
    if isinstance(found, ConnectorError):
        raise Failed(f"the successor failed ({found.failure}): {found}")
    return _one_submission(world, f"sent {len(world.reached())} times")


async def _succeed(world: World, first: Attempt) -> Attempt:
    """The first attempt's worker dies, as its service sees it; another one gets its checkpoint."""
    world.gate.break_all()
    first.task.cancel()
    await asyncio.wait([first.task], timeout=5)
    await first.connector.stop()
    await world.new_gate()
    return world.attempt(await world.opened(), after=first)


def _answered(world: World) -> list[int]:
    return [request.status for request in world.reached() if 0 < request.status < 400]


def _one_submission(world: World, how: str) -> str:
    identity = world.case.identity or carried_key
    names = {identity(request) for request in world.reached()}
    if len(names) > 1:
        raise Failed(f"{len(names)} different submissions: {', '.join(sorted(names)[:3])}")
    if world.executions() not in (None, 1):
        raise Failed(f"the service began the work {world.executions()} times")
    if world.executions() is None and names == {""} and len(world.reached()) > 1:
        raise Failed(f"{len(world.reached())} submissions without a name")
    return f"{how}; one submission"
