"""The one retry loop, and how long it waits: exponential with full jitter, or as long as the service says.

Everything but the loop is pure: clock and chance are arguments. Nothing else in a connector tries again; client
libraries are told not to.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, TypeVar

import msgspec

from empd.connectors.context import Context
from empd.connectors.protocol.verdicts import Retry, Trouble

T = TypeVar("T")

Positive = Annotated[float, msgspec.Meta(gt=0)]


class RetryConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How often and how soon a call is tried again within one attempt at a job.

    `wait_s_max` bounds a wait that the service asks for: a longer one ends the attempt, and the queue waits instead.
    `repeat_in_doubt`: whether a call is made again that may have been carried out (a POST that got no answer).
    """

    attempts_max: Annotated[int, msgspec.Meta(ge=1)] = 4
    base_s: Positive = 0.5
    cap_s: Positive = 30.0
    wait_s_max: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    repeat_in_doubt: bool = True


def retry_after_s(value: str | None, wall_s: float) -> float | None:
    """Seconds to wait that a Retry-After header asks for (RFC 9110, 10.2.3): a number, or an HTTP date; ≥ 0.

    `wall_s` is Unix time. None: there is no header, or it is neither.
    """
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        seconds = float(text)
        return seconds if math.isfinite(seconds) else None
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, moment.timestamp() - wall_s)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def asked_wait_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """What an answer's headers say about when to come again: `retry-after-ms`, else `Retry-After`."""
    exact = headers.get("retry-after-ms", "")
    if exact.isascii() and exact.replace(".", "", 1).isdigit():
        return float(exact) / 1000
    return retry_after_s(headers.get("Retry-After"), wall_s)


def delay_s(config: RetryConfig, attempt: int, asked_s: float | None, left_s: float, chance: float) -> float | None:
    """How long to wait after failed attempt number `attempt` (from 1); None: give up.

    `asked_s` is what the service asks for, `left_s` the time until the job's deadline, `chance` a number 0…1. A wait
    never reaches the deadline.
    """
    if attempt >= config.attempts_max:
        return None
    if asked_s is None:
        wait_s = chance * min(config.cap_s, config.base_s * 2 ** min(attempt - 1, 64))
    elif asked_s > config.wait_s_max:
        return None
    else:
        # Those who were told the same moment do not all come at once.
        wait_s = asked_s + chance * min(config.base_s, 0.1 * asked_s)
    return wait_s if wait_s < left_s else None


class Retries:
    """The loop. `random` gives numbers 0…1."""

    def __init__(self, config: RetryConfig, chance: Callable[[], float] = random.random) -> None:
        self.config = config
        self._chance = chance

    async def run(
        self,
        call: Callable[[], Awaitable[T]],
        context: Context | None = None,
        *,
        repeatable: bool = True,
        on_retry: Callable[[Trouble, int, float], None] | None = None,
    ) -> T:
        """What `call` returns, tried again while it raises `Trouble` whose row says so.

        `repeatable`: doing it twice is the same as once (a GET, an idempotency key). Ends with the trouble's
        ConnectorError; at once when the job is to stop. `on_retry(trouble, attempt, wait_s)` is told of each wait.
        """
        try:
            return await call()
        except Trouble as trouble:
            first = trouble
        return await self.go_on(first, call, context, repeatable=repeatable, on_retry=on_retry)

    async def go_on(
        self,
        trouble: Trouble,
        call: Callable[[], Awaitable[T]],
        context: Context | None = None,
        *,
        repeatable: bool = True,
        on_retry: Callable[[Trouble, int, float], None] | None = None,
    ) -> T:
        """As `run`, after a first try that ended in `trouble`."""
        attempt = 1
        while True:
            wait_s = self._wait_s(trouble, attempt, context, repeatable)
            if wait_s is None:
                raise trouble.error from trouble.__cause__
            if on_retry is not None:
                on_retry(trouble, attempt, wait_s)
            await pause(wait_s, context)
            if context is not None and context.cancelled:
                raise trouble.error from trouble.__cause__
            attempt += 1
            try:
                return await call()
            except Trouble as again:
                trouble = again

    def _wait_s(self, trouble: Trouble, attempt: int, context: Context | None, repeatable: bool) -> float | None:
        row = trouble.row
        if row.retry is not Retry.NOW:
            return None
        if row.doubt and not repeatable and not self.config.repeat_in_doubt:
            trouble.error.retry = False
            return None
        left_s = time_left_s(context)
        return delay_s(self.config, attempt, trouble.error.retry_after_s, left_s, self._chance())


def time_left_s(context: Context | None) -> float:
    """Seconds until the job's deadline; infinite without one."""
    deadline_s = context.deadline_s if context is not None else None
    return math.inf if deadline_s is None or context is None else deadline_s - context.clock()


async def pause(seconds: float, context: Context | None) -> None:
    """Sleeps, and wakes early when the job is to stop."""
    if context is None:
        await asyncio.sleep(seconds)
        return
    try:
        async with asyncio.timeout(seconds):
            await context.wait_cancelled()
    except TimeoutError:
        return
