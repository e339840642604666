"""What a connector makes of a service that fails: one retry loop, waits asked for, answers that are none."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections import Counter
from typing import Any

import msgspec

from empd.connectors.base import DescribesService
from empd.connectors.conformance.gate import Fault
from empd.connectors.conformance.words import Failed, NotClaimed
from empd.connectors.conformance.world import World
from empd.connectors.failures import ConnectorError

CALLS_MAX = 10
"""Calls of one place that an attempt may make of a service that only fails, where its configuration names no number."""

ASKED_S = 600
STALLED_S = 0.5
FINAL_CODES = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNIMPLEMENTED",
)
PASSING_CODES = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "CANCELLED",
    "INTERNAL",
    "UNKNOWN",
    "DATA_LOSS",
)
LARGE_BYTES = 4 << 20
PLANTED = "conformance-planted-secret-3f9c1b"


def _calls_max(world: World) -> int:
    retry = world.setting("retry")
    return int(getattr(retry, "attempts_max", CALLS_MAX))


def _most_calls(world: World) -> int:
    return max(Counter(request.place for request in world.submissions()).values(), default=0)


async def transient_fault(world: World) -> str:
    """A fault that passes is tried again, here or by the queue."""
    world.calls.inject(Fault(world.case.submits, times=1, status=503))
    attempt = world.attempt(await world.opened())
    found = await attempt.outcome()
    if isinstance(found, ConnectorError):
        if not found.retry:
            raise Failed(f"status 503 once, and the job is given up: {found}")
        return f"left to the queue, which tries again ({found.failure})"
    return f"the result came with call {len(world.submissions())}"


async def lasting_fault(world: World) -> str:
    """A fault that stays leads to a bounded number of calls, and the queue may try later."""
    world.calls.inject(Fault(world.case.submits, status=503))
    error = await world.attempt(await world.opened()).error()
    calls, most = _most_calls(world), _calls_max(world) * world.case.ways
    if calls > most:
        raise Failed(f"{calls} calls of one place in one attempt; the configuration allows {most}")
    if not error.retry:
        raise Failed(f"status 503 is final to it: {error}")
    return f"{calls} calls, then {error.failure}"


async def final_fault(world: World) -> str:
    """What no other try can mend is not tried again."""
    seen = []
    for number, status in enumerate((400, 401), start=1):
        before = len(world.submissions())
        fault = world.calls.inject(Fault(world.case.submits, status=status))
        error = await world.attempt(await world.opened(), job_id=number).error()
        fault.times = 0
        calls = max(Counter(request.place for request in world.submissions()[before:]).values(), default=0)
        if calls > world.case.ways:
            raise Failed(f"status {status} was asked for {calls} times")
        if error.retry:
            raise Failed(f"status {status} is to be tried again ({error.failure}): {error}")
        seen.append(f"{status} {error.failure}")
    return ", ".join(seen)


async def retry_after_seconds(world: World) -> str:
    """Retry-After in seconds is obeyed."""
    return await _obeyed(world, str(ASKED_S))


async def retry_after_date(world: World) -> str:
    """Retry-After as a date is obeyed."""
    return await _obeyed(world, email.utils.formatdate(time.time() + ASKED_S, usegmt=True))


async def _obeyed(world: World, asked: str) -> str:
    world.calls.inject(Fault(world.case.submits, status=429, headers={"Retry-After": asked}))
    attempt = world.attempt(await world.opened())
    await asyncio.wait([attempt.task], timeout=2)
    if _most_calls(world) > world.case.ways:
        raise Failed(f"asked to come again in {ASKED_S} s it called {_most_calls(world)} times at once")
    if not attempt.task.done():
        return "it waits"
    error = await attempt.error()
    if not error.retry or error.retry_after_s is None:
        raise Failed(f"the wait that was asked for is lost: {error.failure}, retry_after_s={error.retry_after_s}")
    if not ASKED_S * 0.9 <= error.retry_after_s <= ASKED_S * 1.1:
        raise Failed(f"asked for {ASKED_S} s, it understood {error.retry_after_s:g}")
    return f"back to the queue for {error.retry_after_s:.0f} s"


async def cut_answer(world: World) -> str:
    """An answer that is cut is a failure, or is taken up where it broke off; never a result."""
    _ = world.calls
    connector = await world.opened()
    whole = msgspec.msgpack.encode(await world.attempt(connector).value())
    world.gate.inject(Fault(cut=True))
    found = await world.attempt(connector, job_id=2).outcome()
    if isinstance(found, ConnectorError):
        return f"{found.failure}: {found}"
    if msgspec.msgpack.encode(found) != whole:
        raise Failed(f"it took half an answer for a result: {found!r:.200}")
    return "taken up where it broke off, and whole"


async def status_codes(world: World) -> str:
    """Each status code of gRPC is a failure, and only what may pass is tried again."""
    if world.case.transport != "grpc":
        raise NotClaimed("no status codes but those of HTTP")
    for number, code in enumerate((*FINAL_CODES, *PASSING_CODES), start=1):
        before = len(world.submissions())
        fault = world.calls.inject(Fault(world.case.submits, code=code))
        error = await world.attempt(await world.opened(), job_id=number).error()
        fault.times = 0
        calls = len(world.submissions()) - before
        if calls > (_calls_max(world) if code == "UNAVAILABLE" else 1) * world.case.ways:
            raise Failed(f"{code} was asked for {calls} times")
        if error.retry is (code in FINAL_CODES):
            raise Failed(
                f"{code} is {'to be tried again' if error.retry else 'final to it'} ({error.failure}): {error}"
            )
    return f"{len(FINAL_CODES)} final, {len(PASSING_CODES)} to be tried again"


async def stalled_answer(world: World) -> str:
    """An answer that stops in the middle ends with the call's deadline, as a failure that may pass."""
    if world.case.transport != "grpc" or not world.has("timeout_s"):
        raise NotClaimed("its calls have no deadline")
    gate = world.calls
    connector = await world.opened(timeout_s=STALLED_S)
    gate.inject(Fault(world.case.submits, stalled=True))
    attempt = world.attempt(connector)
    error = await attempt.error()
    if not error.retry:
        raise Failed(f"it is final to it: {error}")
    await world.until(lambda: all(call.ended != "open" for call in world.submissions()), "the call to be given up")
    return f"{error.failure}: {error}"


async def error_in_good_answer(world: World) -> str:
    """An error in an answer with status 200 is a failure."""
    if world.case.error_body is None:
        raise NotClaimed("the case names no error body")
    told = world.case.error_body
    body = told if isinstance(told, bytes) else msgspec.json.encode(told)
    world.calls.inject(Fault(world.case.submits, status=200, body=body))
    error = await world.attempt(await world.opened()).error()
    return f"{error.failure}: {error}"


async def bounded_answer(world: World) -> str:
    """An answer above the limit is refused, not read."""
    key = next((key for key in ("response_bytes_max", "message_bytes_max") if world.has(key)), None)
    if key is None:
        raise NotClaimed("its configuration has neither response_bytes_max nor message_bytes_max")
    body = b'{"filler": "' + b"x" * LARGE_BYTES + b'"}'
    world.calls.inject(Fault(world.case.submits, status=200, body=body))
    error = await world.attempt(await world.opened(**{key: LARGE_BYTES // 16})).error()
    if _most_calls(world) > world.case.ways:
        raise Failed(f"it fetched what is too large {_most_calls(world)} times")
    return f"{error.failure}: {error}"


async def no_secret(world: World) -> str:
    """No secret stands in logs, failures, evidence, reports or checkpoints."""
    config, secrets = _planted(world)
    gate = world.gate if world.case.transport == "websocket" else world.calls
    connector = await world.opened(**config)
    await world.attempt(connector).outcome()
    if isinstance(connector, DescribesService):
        try:
            world.said.append(await connector.service_info())
        except ConnectorError as error:
            _keep(world, error)
    for number, status in enumerate((401, 500, 429), start=2):
        fault = gate.inject(Fault(("*",), status=status, tells=True))
        if world.case.transport == "websocket":  # credentials are shown, and refused, when it connects
            gate.break_all()
            await gate.mend()
        _keep(world, await world.attempt(connector, job_id=number).outcome())
        await connector.probe()
        world.said.append(connector.reason)
        fault.times = 0
    sent = [f"{request.headers} {request.path}" for request in gate.requests]
    carried = [secret for secret in secrets if any(secret in text for text in sent)]
    if not carried:
        raise NotClaimed("no request carried a credential")
    said = [repr(world.said), *(text for port in world.ports for text in port.texts)]
    for text in said:
        for secret in secrets:
            if secret in text:
                at = text.index(secret)
                raise Failed(f"a secret was told: …{text[max(0, at - 80) : at]}[SECRET]")
    return f"{len(said) + len(world.said)} texts without it"


def _planted(world: World) -> tuple[dict[str, Any], list[str]]:
    given = world.case.api_config
    known = [str(value) for key, value in given.items() if key in ("api_key", "token", "password") and value]
    known += [value for value in world.case.environ.values() if len(value) > 3]
    if known or not world.has("auth") or given.get("auth"):
        auth = given.get("auth") or {}
        return {}, known + [str(auth[key]) for key in ("api_key", "token", "password", "client_secret") if key in auth]
    return {"auth": {"type": "bearer", "token": PLANTED}}, [PLANTED]


def _keep(world: World, found: Any) -> None:
    if isinstance(found, ConnectorError):
        world.said.append((found.message, found.evidence, str(found.__cause__)))
