"""One job, its progress, and the races of a cancel."""

from __future__ import annotations

import asyncio
import itertools

from empd.connectors.base import Cancellable, ReportsProgress, Resumable
from empd.connectors.conformance.gate import Fault
from empd.connectors.conformance.words import NOTHING, Failed, NotClaimed
from empd.connectors.conformance.world import Attempt, World
from empd.payload import encode_value


async def one_job(world: World) -> str:
    """A job ends with a value that can be carried."""
    attempt = world.attempt(await world.opened())
    value = await attempt.value()
    try:
        encoding, data = encode_value(value)
    except TypeError as error:
        raise Failed(f"the result has no msgpack form: {error}") from None
    return f"{len(data)} bytes of {encoding}"


async def progress(world: World) -> str:
    """Progress lies in 0…1, never falls, and comes as often as the class says."""
    kind = world.case.connector
    if not issubclass(kind, ReportsProgress):
        raise NotClaimed("it reports no progress")
    attempt = world.attempt(await world.opened())
    began_s = attempt.context.clock()
    await attempt.value()
    told = attempt.context.told
    fractions = [fraction for _, fraction in told]
    if not told:
        raise Failed("a whole job without one call of progress")
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise Failed(f"outside 0…1: {fractions[:10]}")
    if fractions != sorted(fractions):
        raise Failed(f"it fell: {fractions[:10]}")
    moments = [began_s, *(moment for moment, _ in told), attempt.context.clock()]
    pause_s = max(later - earlier for earlier, later in itertools.pairwise(moments))
    if pause_s > kind.progress_interval_s:
        raise Failed(f"{pause_s:.1f} s without progress; the class says {kind.progress_interval_s:g}")
    return f"{len(told)} times, longest pause {pause_s:.2f} s"


async def cancel_running(world: World) -> str:
    """A running job that is cancelled ends, and its service is told."""
    connector = await world.opened()
    attempt = world.long_job(connector)
    await _in_mid_job(world, attempt)
    await attempt.stop()
    return await _told(world)


async def cancel_while_submitting(world: World) -> str:
    """A cancel that comes while the submission is under way leaves no work behind."""
    gate = world.calls
    door = asyncio.Event()
    connector = await world.opened()
    if world.case.long_payload is not NOTHING:
        gate.inject(Fault(world.case.submits, times=1, held=door))
    attempt = world.long_job(connector)
    await world.until(world.submissions, "the submission", attempt)
    stopping = asyncio.ensure_future(attempt.stop())
    await asyncio.sleep(0)
    door.set()
    await stopping
    if not world.reached():
        return "the submission was called off"
    return await _told(world)


async def cancel_before(world: World) -> str:
    """A cancel that comes before the first step ends the job too."""
    connector = await world.opened()
    attempt = world.long_job(connector)
    await attempt.stop()
    if not world.reached():
        return "nothing was submitted"
    return await _told(world)


async def cancel_after(world: World) -> str:
    """A cancel that comes after the end harms nobody."""
    connector = await world.opened()
    attempt = world.attempt(connector)
    await attempt.value()
    told = len(world.cancels())
    await attempt.stop()
    if isinstance(connector, Cancellable) and len(world.cancels()) > told + 1:
        raise Failed("the service was told more than once")
    await world.attempt(connector, job_id=3).value()
    return "the next job was well"


async def cancel_neighbour(world: World) -> str:
    """A cancel never reaches another job."""
    connector = await world.opened()
    neighbour = world.attempt(connector, job_id=1)
    if world.case.submits:
        await world.until(world.reached, "the neighbour's submission", neighbour)
    cancelled = world.long_job(connector, job_id=2)
    if world.case.submits:
        await world.until(lambda: len(world.submissions()) > 1, "the submission", cancelled)
    await cancelled.stop()
    await neighbour.value()
    await world.attempt(connector, job_id=3).value()
    return "the neighbour and the next job were well"


async def _in_mid_job(world: World, attempt: Attempt) -> None:
    """Returns when the service has the job, and the connector knows it."""
    if not world.case.submits:
        await asyncio.sleep(0.05)
        return
    await world.until(world.submissions, "the submission", attempt)
    if world.case.long_payload is NOTHING:
        return
    if isinstance(attempt.connector, Resumable) and "resume" not in world.case.waived:
        await world.until(
            lambda: attempt.handle is not None and attempt.handle.id and any(r.status for r in world.reached()),
            "the journaled submission",
            attempt,
        )


async def _told(world: World) -> str:
    if not issubclass(world.case.connector, Cancellable) or not world.case.cancels:
        if not world.case.submits:
            return "the job ended"
        await world.until(
            lambda: all(request.ended != "open" for request in world.submissions()), "the call to be given up"
        )
        return "the job ended, and the call was given up"
    if not world.cancels():
        raise Failed("the service was not told to stop, and works on")
    return f"the service was told ({world.cancels()[0].place})"
