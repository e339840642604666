"""How a connector calls its service, whatever the protocol: turn, circuit, verdict, retry. One place for all of it.

Calls.run ─ Retries ─┬─ try 1 ─ rate limit ─ concurrency ─ circuit ─ the protocol's own call
                     └─ try 2 …
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar

from empd.connectors.base import Site
from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError, RateLimited
from empd.connectors.protocol.circuit_breaker import CircuitBreaker, CircuitConfig, CircuitState
from empd.connectors.protocol.rate_limit import RateLimitConfig, RateLimiter
from empd.connectors.protocol.retry import Retries, RetryConfig, pause, time_left_s
from empd.connectors.protocol.verdicts import Fault, Trouble
from empd.errors import FailureClass

T = TypeVar("T")

ENDPOINTS_MAX = 64
"""Circuits kept at a time; a connector that names more endpoints than this shares the last one."""


class Rules(NamedTuple):
    """What governs the calls; None: no such limit."""

    retry: RetryConfig
    rate_limit: RateLimitConfig | None = None
    circuit: CircuitConfig | None = None


class Calls:
    """The calls of one connector instance."""

    def __init__(self, rules: Rules, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self.in_flight = 0
        self.retries = Retries(rules.retry)
        self.limiter = RateLimiter(rules.rate_limit) if rules.rate_limit is not None else None
        self.circuits: dict[str, CircuitBreaker] = {}
        self._site = site
        self._clock = clock
        self._circuit = rules.circuit
        concurrent_max = rules.rate_limit.concurrent_max if rules.rate_limit is not None else None
        self._slots = asyncio.Semaphore(concurrent_max) if concurrent_max is not None else None

    async def run(
        self,
        endpoint: str,
        call: Callable[[], Awaitable[T]],
        context: Context | None = None,
        *,
        repeatable: bool = True,
        holds_slot: bool = False,
    ) -> T:
        """What `call` returns; it raises `Trouble` for what the verdict table knows. See Retries.run.

        `holds_slot`: the caller has entered `slot`, as its call goes on after this (a stream), or needs none.
        """
        # The way of nearly all calls; the loop is for the others.
        try:
            return await self.once(endpoint, call, context, holds_slot=holds_slot)
        except Trouble as trouble:
            first = trouble
        return await self.retries.go_on(
            first,
            lambda: self.once(endpoint, call, context, holds_slot=holds_slot),
            context,
            repeatable=repeatable,
            on_retry=lambda trouble, attempt, wait_s: self._log_retry(endpoint, trouble, attempt, wait_s),
        )

    async def once(
        self,
        endpoint: str,
        call: Callable[[], Awaitable[T]],
        context: Context | None = None,
        *,
        holds_slot: bool = False,
    ) -> T:
        """One try: waits for its turn, asks the circuit, calls, and tells both how it went. Raises Trouble."""
        self.in_flight += 1
        try:
            limiter = self.limiter
            if limiter is not None and limiter.book(self._clock(), within_s=0.0) > 0:
                await self._turn(limiter, context)
            if self._slots is None or holds_slot:
                return await self._through(endpoint, call)
            async with self._slots:
                return await self._through(endpoint, call)
        except Trouble as trouble:
            self._hold(trouble)
            raise
        finally:
            self.in_flight -= 1

    def slot(self) -> contextlib.AbstractAsyncContextManager[None]:
        """One of the `concurrent_max` calls at a time, for as long as the context lasts."""
        return contextlib.nullcontext() if self._slots is None else self._slots

    async def _through(self, endpoint: str, call: Callable[[], Awaitable[T]]) -> T:
        circuit = self.circuit(endpoint)
        if circuit is None:
            return await call()
        ticket = circuit.enter(self._clock())
        fault: bool | None = None
        try:
            answer = await call()
            fault = False
            return answer
        except Trouble as trouble:
            fault = trouble.row.fault is Fault.SERVICE
            raise
        except ConnectorError:
            fault = False
            raise
        finally:
            circuit.leave(ticket, self._clock(), fault)

    async def _turn(self, limiter: RateLimiter, context: Context | None) -> None:
        now_s = self._clock()
        wait_s = limiter.earliest_s(now_s) - now_s
        if wait_s > 0 and (wait_s > limiter.config.wait_s_max or wait_s >= time_left_s(context)):
            raise RateLimited("the rate limit leaves no room for this call in time", retry_after_s=wait_s)
        limiter.book(now_s)
        if wait_s > 0:
            await pause(wait_s, context)
            if context is not None and context.cancelled:
                raise ConnectorError("stopped while it waited for its turn", failure=FailureClass.CANCELLED)

    def observe(self, headers: Mapping[str, str]) -> None:
        """Takes note of what an answer's headers say about the rate limit."""
        if self.limiter is not None:
            self.limiter.observe(headers, max(0, self.in_flight - 1), self._clock(), time.time())

    def faulty(self, endpoint: str, trouble: Trouble) -> None:
        """A call that had begun well (a stream) broke later."""
        circuit = self.circuit(endpoint)
        if circuit is not None and trouble.row.fault is Fault.SERVICE:
            circuit.faulty(self._clock())

    def _hold(self, trouble: Trouble) -> None:
        asked_s = trouble.error.retry_after_s
        if self.limiter is not None and asked_s is not None and trouble.row.failure is FailureClass.RATE_LIMITED:
            self.limiter.hold(asked_s, self._clock())

    def forget_circuits(self) -> None:
        """Another server may be there now, of which no circuit knows anything."""
        circuits, self.circuits = self.circuits, {}
        for name in circuits:
            self._site.hold(f"circuit {name}")
            self._site.report(f"circuit {name}", None)

    def circuit(self, endpoint: str) -> CircuitBreaker | None:
        """The circuit of an endpoint; None when the service has none."""
        if self._circuit is None:
            return None
        found = self.circuits.get(endpoint)
        if found is None:
            if len(self.circuits) >= ENDPOINTS_MAX:
                return next(reversed(self.circuits.values()))
            found = self.circuits[endpoint] = CircuitBreaker(self._circuit, endpoint, self._log_circuit)
        return found

    def _log_circuit(self, circuit: CircuitBreaker, now_s: float) -> None:
        site, state, wait_s = self._site, circuit.state.value, round(circuit.wait_s(now_s), 3)
        is_open = circuit.state is CircuitState.OPEN
        site.hold(f"circuit {circuit.name}", f"circuit open: {circuit.name}" if is_open else "", wait_s)
        site.report(f"circuit {circuit.name}", {"state": state, "opened": circuit.opens, "open_s": wait_s})
        site.log("service_circuit", service=site.service, endpoint=circuit.name, state=state, open_s=wait_s)

    def _log_retry(self, endpoint: str, trouble: Trouble, attempt: int, wait_s: float) -> None:
        self._site.log(
            "service_retry",
            service=self._site.service,
            endpoint=endpoint,
            failure=trouble.error.failure.value,
            attempt=attempt,
            wait_s=round(wait_s, 3),
        )
