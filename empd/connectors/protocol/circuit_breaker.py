"""The circuit breaker: after enough faults of a service, calls fail at once until a probe has gone well.

    closed ──(failures_max faults within window_s)──▶ open ──(open_s)──▶ half-open ──(probes_ok good probes)──▶ closed
                                                       ▲                    │
                                                       └──(a bad probe; open_s doubles up to open_s_max)

Pure: the time is an argument. A call that began before the last change of state says nothing about the new one.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec

from empd.connectors.failures import ServiceUnavailable

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class CircuitState(enum.StrEnum):
    """Where a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """When a circuit opens, and how it closes again. `probes_max`: calls let through at a time while half-open."""

    failures_max: Count = 5
    window_s: Positive = 60.0
    open_s: Positive = 5.0
    open_s_max: Positive = 120.0
    probes_max: Count = 1
    probes_ok: Count = 1


class CircuitOpen(ServiceUnavailable):
    """The call was not made, as the circuit is open. `retry_after_s` says when to come again."""


class CircuitBreaker:
    """One endpoint's circuit. `on_change(breaker, now_s)` is called after each change of state."""

    def __init__(
        self, config: CircuitConfig, name: str = "", on_change: Callable[[CircuitBreaker, float], None] | None = None
    ) -> None:
        self.name = name
        self.state = CircuitState.CLOSED
        self.opens = 0
        self._config = config
        self._on_change = on_change
        self._faults: deque[float] = deque(maxlen=config.failures_max)
        self._generation = 1
        self._open_s = config.open_s
        self._until_s = 0.0
        self._probing = 0
        self._good = 0

    def wait_s(self, now_s: float) -> float:
        """Seconds until a call may be let through; 0: now."""
        if self.state is CircuitState.OPEN:
            return max(0.0, self._until_s - now_s)
        if self.state is CircuitState.HALF_OPEN and self._probing >= self._config.probes_max:
            return self._config.open_s
        return 0.0

    def check(self, now_s: float) -> None:
        """Raises CircuitOpen when no call may be let through now."""
        wait_s = self.wait_s(now_s)
        if wait_s > 0:
            raise CircuitOpen(f"the circuit of {self.name} is {self.state.value}", retry_after_s=wait_s)

    def enter(self, now_s: float) -> int:
        """Lets a call through; returns its ticket for `leave`. Raises CircuitOpen."""
        if self.state is CircuitState.CLOSED:
            return self._generation
        self.check(now_s)
        if self.state is CircuitState.OPEN:
            self._become(CircuitState.HALF_OPEN, now_s)
        self._probing += 1
        return self._generation

    def leave(self, ticket: int, now_s: float, service_fault: bool | None) -> None:
        """The call has ended: `service_fault` True or False, or None when it tells nothing (cancelled)."""
        if ticket != self._generation:
            return
        if self.state is CircuitState.CLOSED:
            if service_fault:
                self._fault(now_s)
            elif service_fault is False and self._faults:
                self._faults.clear()
            return
        self._probing -= 1
        if service_fault:
            self._open_s = min(self._open_s * 2, self._config.open_s_max)
            self._open(now_s)
        elif service_fault is False:
            self._good += 1
            if self._good >= self._config.probes_ok:
                self._open_s = self._config.open_s
                self._become(CircuitState.CLOSED, now_s)

    def faulty(self, now_s: float) -> None:
        """A fault of the service that shows after its call had ended well."""
        if self.state is CircuitState.CLOSED:
            self._fault(now_s)

    def _fault(self, now_s: float) -> None:
        self._faults.append(now_s)
        if len(self._faults) == self._config.failures_max and now_s - self._faults[0] <= self._config.window_s:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self.opens += 1
        self._until_s = now_s + self._open_s
        self._become(CircuitState.OPEN, now_s)

    def _become(self, state: CircuitState, now_s: float) -> None:
        self.state = state
        self._generation += 1
        self._probing = self._good = 0
        self._faults.clear()
        if self._on_change is not None:
            self._on_change(self, now_s)
