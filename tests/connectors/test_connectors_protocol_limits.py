"""How much may go to a service, without a socket: rate limits, circuits, calls at a time."""

from __future__ import annotations

import datetime
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from empd.connectors.protocol.circuit_breaker import CircuitBreaker, CircuitConfig, CircuitOpen, CircuitState
from empd.connectors.protocol.rate_headers import Left, left_of, reset_s
from empd.connectors.protocol.rate_limit import RateLimitConfig, RateLimiter
from empd.errors import FailureClass
from empd.job import Cause

WALL_S = 1_700_000_000.0


# --- rate limits -----------------------------------------------------------------------------------------------------

GAPS = st.lists(st.floats(0, 3), min_size=1, max_size=80)


@given(GAPS, st.floats(0.5, 10), st.integers(1, 8))
def test_a_bucket_lets_burst_and_rate_through_and_no_more(gaps: list[float], per_s: float, burst: int) -> None:
    limiter = RateLimiter(RateLimitConfig(per_s=per_s, burst=burst))
    times = [now_s + limiter.book(now_s) for now_s in itertools.accumulate(gaps)]
    assert times == sorted(times)
    for i, j in itertools.combinations(range(len(times)), 2):
        assert j - i + 1 <= burst + (times[j] - times[i]) * per_s + 1e-6


@given(GAPS, st.integers(1, 6), st.floats(0.1, 10))
def test_a_window_holds_at_most_its_number(gaps: list[float], requests_max: int, window_s: float) -> None:
    limiter = RateLimiter(RateLimitConfig(requests_max=requests_max, window_s=window_s))
    times = [now_s + limiter.book(now_s) for now_s in itertools.accumulate(gaps)]
    for start in range(len(times) - requests_max):
        assert times[start + requests_max] - times[start] >= window_s - 1e-9


def test_a_limiter_that_may_let_through_does_so_at_once() -> None:
    limiter = RateLimiter(RateLimitConfig(per_s=2, burst=3))
    assert [limiter.book(0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.book(100.0) == 0


def test_the_services_headers_steer() -> None:
    limiter = RateLimiter(RateLimitConfig())
    headers = CIMultiDict({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "10"})
    limiter.observe(headers, 1, 0.0, WALL_S)
    assert [limiter.book(0.0) for _ in range(3)] == [0, 0, 10]
    assert limiter.book(10.0) == 0
    limiter.hold(5, 20.0)
    assert limiter.book(20.0) == 5
    deaf = RateLimiter(RateLimitConfig(follow_headers=False))
    deaf.observe(CIMultiDict({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "10"}), 0, 0.0, WALL_S)
    assert deaf.book(0.0) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("30", 30),
        ("0.5", 0.5),
        (str(int(WALL_S) + 60), 60),
        (str((int(WALL_S) + 60) * 1000), 60),
        (str(int(WALL_S) - 60), 0),
        (datetime.datetime.fromtimestamp(WALL_S + 90, datetime.UTC).isoformat(), 90),
        ("soon", None),
        ("", None),
    ],
)
def test_resets_in_all_their_forms(text: str, seconds: float | None) -> None:
    assert reset_s(text, WALL_S) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=60))
def test_any_reset_is_none_or_a_wait(text: str) -> None:
    wait_s = reset_s(text, WALL_S)
    assert wait_s is None or 0 <= wait_s < math.inf


def test_the_drafts_structured_field_and_several_families() -> None:
    headers = CIMultiDict({"RateLimit": '"default";r=50;t=30', "ratelimit-remaining": "7", "ratelimit-reset": "9"})
    assert left_of(headers, WALL_S) == [Left(7, 9), Left(50, 30)]
    assert left_of(CIMultiDict({"x-ratelimit-remaining": "many", "x-ratelimit-reset": "1"}), WALL_S) == []


# --- circuits --------------------------------------------------------------------------------------------------------


class Circuit:
    """A breaker with a clock of its own."""

    def __init__(self, **config: Any) -> None:
        self.now_s = 0.0
        self.changes: list[str] = []
        self.breaker = CircuitBreaker(CircuitConfig(**config), "here", lambda b, _: self.changes.append(b.state.value))

    def call(self, service_fault: bool | None) -> None:
        self.breaker.leave(self.breaker.enter(self.now_s), self.now_s, service_fault)


def test_a_circuit_opens_probes_and_closes_as_configured() -> None:
    circuit = Circuit(failures_max=3, window_s=10, open_s=5, open_s_max=8)
    for fault in (True, True, False, True, True, None, True):
        circuit.call(fault)
    with pytest.raises(CircuitOpen, match="here") as caught:
        circuit.call(False)
    assert caught.value.retry_after_s == 5
    assert (caught.value.failure, caught.value.cause) == (FailureClass.UNAVAILABLE, Cause.UPSTREAM)
    circuit.now_s = 5
    probe = circuit.breaker.enter(5)
    with pytest.raises(CircuitOpen):
        circuit.breaker.enter(5)
    circuit.breaker.leave(probe, 6, True)
    assert circuit.breaker.wait_s(6) == 8
    circuit.now_s = 14
    circuit.call(None)
    circuit.call(False)
    assert circuit.changes == ["open", "half_open", "open", "half_open", "closed"]
    assert circuit.breaker.opens == 2


def test_faults_far_apart_open_nothing() -> None:
    circuit = Circuit(failures_max=2, window_s=10)
    for circuit.now_s in (0.0, 11.0, 22.0, 33.0):
        circuit.call(True)
    assert circuit.breaker.state is CircuitState.CLOSED


def test_a_late_answer_says_nothing_about_the_new_state() -> None:
    circuit = Circuit(failures_max=1, open_s=5)
    early = [circuit.breaker.enter(0) for _ in range(3)]
    circuit.breaker.leave(early[0], 0, True)
    circuit.breaker.leave(early[1], 1, False)
    assert circuit.breaker.state is CircuitState.OPEN
    probe = circuit.breaker.enter(6)
    circuit.breaker.leave(early[2], 6, True)
    circuit.breaker.leave(probe, 6, False)
    assert circuit.changes == ["open", "half_open", "closed"]


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "ok", "fault", "nothing", "wait"]), st.integers(0, 5)), max_size=150)
)
def test_a_breaker_in_any_order(steps: list[tuple[str, int]]) -> None:
    circuit = Circuit(failures_max=3, window_s=30, open_s=4, open_s_max=9, probes_max=2, probes_ok=2)
    breaker, tickets, probing = circuit.breaker, [], 0
    for step, number in steps:
        if step == "wait":
            circuit.now_s += number
        elif step == "enter":
            wait_s = breaker.wait_s(circuit.now_s)
            assert wait_s <= 9
            try:
                tickets.append(breaker.enter(circuit.now_s))
                assert wait_s == 0
            except CircuitOpen as error:
                assert error.retry_after_s == wait_s > 0
        elif tickets:
            outcome = {"ok": False, "fault": True, "nothing": None}[step]
            breaker.leave(tickets.pop(number % len(tickets)), circuit.now_s, outcome)
        probing = sum(ticket == breaker._generation for ticket in tickets)
        assert breaker.state is not CircuitState.HALF_OPEN or probing <= 2
        assert breaker.state is not CircuitState.OPEN or probing == 0
    # Whatever happened, a service that is well is served again.
    for ticket in tickets:
        breaker.leave(ticket, circuit.now_s, None)
    circuit.now_s += 9
    for _ in range(2):
        circuit.call(False)
    assert breaker.state is CircuitState.CLOSED
