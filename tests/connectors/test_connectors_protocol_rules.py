"""What all protocols share, without a socket: retry, verdicts, JSON pointers, cache."""

from __future__ import annotations

import asyncio
import email.utils
import math
from collections import OrderedDict
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from empd.connectors.base import Site
from empd.connectors.failures import ConnectorError, RateLimited
from empd.connectors.protocol import json_pointer
from empd.connectors.protocol.cache import Cache, CacheConfig
from empd.connectors.protocol.calls import ENDPOINTS_MAX, Calls, Rules
from empd.connectors.protocol.circuit_breaker import CircuitConfig, CircuitOpen, CircuitState
from empd.connectors.protocol.json_pointer import MISSING, Pointer
from empd.connectors.protocol.rate_limit import RateLimitConfig
from empd.connectors.protocol.retry import Retries, RetryConfig, asked_wait_s, delay_s, retry_after_s
from empd.connectors.protocol.verdicts import COMMON, Fault, Retry, Row, Trouble, VerdictTable
from empd.errors import FailureClass
from empd.job import Cause

WALL_S = 1_700_000_000.0
SECONDS = st.floats(0, 1e6, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


# --- Retry-After and the retry loop ----------------------------------------------------------------------------------


@given(st.integers(0, 10**9))
def test_retry_after_in_seconds(seconds: int) -> None:
    assert retry_after_s(f" {seconds} ", WALL_S) == seconds


@given(st.integers(-(10**6), 10**6))
def test_retry_after_as_a_date_is_never_negative(offset_s: int) -> None:
    date = email.utils.formatdate(WALL_S + offset_s, usegmt=True)
    assert retry_after_s(date, WALL_S) == max(0, offset_s)


@pytest.mark.parametrize(
    "text",
    ["Tue, 14 Nov 2023 22:13:50 GMT", "Tuesday, 14-Nov-23 22:13:50 GMT", "Tue Nov 14 22:13:50 2023"],
)
def test_the_three_forms_of_an_http_date(text: str) -> None:
    assert retry_after_s(text, WALL_S) == 30


@given(st.text())
def test_any_other_retry_after_is_none_or_a_wait(text: str) -> None:
    wait_s = retry_after_s(text, WALL_S)
    assert wait_s is None or 0 <= wait_s < math.inf


def test_milliseconds_are_more_exact_than_retry_after() -> None:
    assert asked_wait_s(CIMultiDict({"Retry-After-Ms": "250", "retry-after": "1"}), WALL_S) == 0.25
    assert asked_wait_s(CIMultiDict({"retry-after": "1"}), WALL_S) == 1
    assert asked_wait_s(CIMultiDict(), WALL_S) is None


@given(st.integers(1, 200), st.none() | SECONDS, SECONDS, st.floats(0, 1))
def test_a_wait_is_bounded_and_never_reaches_the_deadline(
    attempt: int, asked_s: float | None, left_s: float, chance: float
) -> None:
    config = RetryConfig(attempts_max=8, base_s=0.5, cap_s=20, wait_s_max=40)
    wait_s = delay_s(config, attempt, asked_s, left_s, chance)
    if wait_s is None:
        return
    assert attempt < 8
    assert 0 <= wait_s < left_s
    if asked_s is None:
        assert wait_s <= min(20, 0.5 * 2 ** (attempt - 1))
    else:
        assert asked_s <= wait_s <= asked_s + 0.5 <= 40.5


def row_of(status: int) -> Row:
    return COMMON.of_answer(status)


class Failing:
    """A call that fails so often with a status, then answers."""

    def __init__(self, status: int, times: int) -> None:
        self.calls = 0
        self.row = row_of(status)
        self.times = times

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise Trouble(self.row, self.row.error("seen"))
        return "answer"


@pytest.mark.parametrize(
    ("status", "times", "repeatable", "calls"),
    [
        (503, 2, False, 3),
        (503, 9, True, 4),
        (400, 9, True, 1),
        (401, 9, True, 1),
        (504, 9, False, 1),  # it may have been carried out, and may not be repeated
        (504, 2, True, 3),
    ],
)
def test_the_loop_tries_what_its_row_says(status: int, times: int, repeatable: bool, calls: int) -> None:
    failing = Failing(status, times)
    retries = Retries(RetryConfig(base_s=1e-6, repeat_in_doubt=False), lambda: 0.5)

    async def run() -> str:
        return await retries.run(failing, repeatable=repeatable)

    if calls > times:
        assert asyncio.run(run()) == "answer"
    else:
        with pytest.raises(ConnectorError) as caught:
            asyncio.run(run())
        assert caught.value.retry is (status == 503 or (status == 504 and repeatable))
    assert failing.calls == calls


def test_a_doubtful_call_is_repeated_where_that_is_allowed() -> None:
    failing = Failing(504, 1)
    assert asyncio.run(Retries(RetryConfig(base_s=1e-6)).run(failing, repeatable=False)) == "answer"


# --- calls: turn, circuit, retry together ----------------------------------------------------------------------------


def test_the_circuit_counts_only_what_is_the_services_fault() -> None:
    async def run() -> None:
        calls = Calls(Rules(RetryConfig(attempts_max=1), None, CircuitConfig(failures_max=2)), Site(service="s"))
        for status in (503, 400, 401, 404, 429):
            with pytest.raises(ConnectorError):
                await calls.run("e", Failing(status, 9))
        with pytest.raises(ConnectorError):
            await calls.run("e", Failing(500, 9))
        assert calls.circuits["e"].state is CircuitState.CLOSED
        for _ in range(2):
            with pytest.raises(ConnectorError):
                await calls.run("e", Failing(503, 9))
        with pytest.raises(CircuitOpen):
            await calls.run("e", Failing(503, 0))
        assert await calls.run("other", Failing(503, 0)) == "answer"
        for number in range(ENDPOINTS_MAX * 2):
            assert await calls.run(str(number), Failing(503, 0)) == "answer"
        assert len(calls.circuits) == ENDPOINTS_MAX
        assert calls.in_flight == 0

    asyncio.run(run())


def test_who_cannot_have_a_turn_in_time_goes_back_to_the_queue() -> None:
    async def run() -> None:
        calls = Calls(Rules(RetryConfig(), RateLimitConfig(per_s=0.01, wait_s_max=1)), Site())
        assert await calls.run("e", Failing(503, 0)) == "answer"
        with pytest.raises(RateLimited) as caught:
            await calls.run("e", Failing(503, 0))
        assert 90 < caught.value.retry_after_s <= 100

    asyncio.run(run())


def test_no_more_calls_at_a_time_than_declared() -> None:
    async def run() -> None:
        calls = Calls(Rules(RetryConfig(), RateLimitConfig(concurrent_max=2)), Site())
        running, most = 0, 0

        async def call() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

        await asyncio.gather(*(calls.run("e", call) for _ in range(9)))
        assert most == 2

    asyncio.run(run())


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "failure", "retry", "fault", "cause"),
    [
        (400, "invalid_input", "never", "job", Cause.JOB_FAULT),
        (401, "auth", "never", "operator", Cause.JOB_FAULT),
        (402, "auth", "never", "operator", Cause.JOB_FAULT),
        (403, "auth", "never", "operator", Cause.JOB_FAULT),
        (404, "not_found", "never", "job", Cause.JOB_FAULT),
        (408, "timeout", "now", "service", Cause.JOB_FAULT),
        (413, "invalid_input", "never", "job", Cause.JOB_FAULT),
        (422, "invalid_input", "never", "job", Cause.JOB_FAULT),
        (429, "rate_limited", "now", "job", Cause.UPSTREAM),
        (451, "refused", "never", "job", Cause.JOB_FAULT),
        (500, "unavailable", "now", "service", Cause.JOB_FAULT),
        (502, "unavailable", "now", "service", Cause.UPSTREAM),
        (503, "unavailable", "now", "service", Cause.UPSTREAM),
        (504, "timeout", "now", "service", Cause.JOB_FAULT),
        (307, "bad_response", "never", "operator", Cause.JOB_FAULT),
        (999, "bad_response", "later", "service", Cause.JOB_FAULT),
    ],
)
def test_statuses(status: int, failure: str, retry: str, fault: str, cause: Cause) -> None:
    row = row_of(status)
    assert (row.failure.value, row.retry.value, row.fault.value, row.cause) == (failure, retry, fault, cause)
    error = row.error("why", 3.0, "body")
    assert (error.failure, error.cause, error.retry) == (row.failure, cause, retry != "never")
    assert (error.retry_after_s, error.evidence) == (3.0, "body")
    assert error.message.endswith(": why")


@given(st.integers(-10, 10_000))
def test_every_status_has_a_verdict(status: int) -> None:
    assert row_of(status).failure in FailureClass


@pytest.mark.parametrize(
    ("error", "failure", "fault", "doubt"),
    [
        (ConnectionRefusedError(), "unavailable", "service", False),
        (aiohttp.ConnectionTimeoutError(), "unavailable", "service", False),
        (aiohttp.SocketTimeoutError(), "timeout", "service", True),
        (TimeoutError(), "timeout", "service", True),
        (aiohttp.ServerDisconnectedError(), "unavailable", "service", True),
        (aiohttp.ClientPayloadError(), "bad_response", "service", True),
        (aiohttp.InvalidURL("x"), "invalid_input", "operator", False),
        (aiohttp.ClientError(), "unavailable", "service", True),
    ],
)
def test_exceptions(error: Exception, failure: str, fault: str, doubt: bool) -> None:
    row = COMMON.of_exception(error)
    assert row is not None
    assert (row.failure.value, row.fault.value, row.doubt) == (failure, fault, doubt)


def test_what_no_call_raises_has_no_row() -> None:
    assert COMMON.of_exception(KeyError("timeout")) is None


def test_a_vendors_rows_come_first_and_codes_are_read_where_they_stand() -> None:
    no_money = Row(FailureClass.AUTH, Retry.NEVER, Fault.OPERATOR, "no credit", codes={"insufficient_quota"})
    odd = Row(FailureClass.GPU_LOST, Retry.LATER, Fault.SERVICE, exceptions=(KeyError,))
    table = VerdictTable(no_money, odd)
    body = {"error": {"code": "insufficient_quota", "type": "x", "message": "rate limit"}}
    assert table.of_answer(429, body) is no_money
    assert table.of_answer(429, {"error": {"message": "insufficient_quota"}}).failure is FailureClass.RATE_LIMITED
    assert table.of_code("insufficient_quota") is no_money
    assert table.of_code("other") is None
    assert table.of_exception(KeyError()) is odd
    assert table.message(body) == "rate limit"
    assert table.codes({"error": "plain"}) == ["plain"]


@given(JSON)
def test_any_body_can_be_read_for_codes(body: Any) -> None:
    assert all(isinstance(code, str) for code in COMMON.codes(body))
    assert isinstance(COMMON.message({"error": body}), str)


# --- JSON pointers ---------------------------------------------------------------------------------------------------

DOCUMENT = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", DOCUMENT),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_the_pointers_of_the_rfc(text: str, value: Any) -> None:
    assert Pointer(text).find(DOCUMENT) == value


def places(document: Any, tokens: tuple[str | int, ...] = ()) -> Any:
    yield tokens, document
    for key, value in (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else ())
    ):
        yield from places(value, (*tokens, key))


@given(JSON)
def test_every_place_is_found_by_its_pointer(document: Any) -> None:
    for tokens, value in places(document):
        assert Pointer(json_pointer.join(*tokens)).find(document) is value


@given(st.text(), JSON)
def test_any_text_is_a_pointer_or_an_error(text: str, document: Any) -> None:
    try:
        pointer = Pointer(text)
    except ValueError:
        assert (text and not text.startswith("/")) or "~" in text
        return
    pointer.find(document)


@pytest.mark.parametrize("text", ["/foo/2", "/foo/-", "/foo/-1", "/foo/01", "/foo/x", "/none", "/a~1b/c"])
def test_nothing_is_there(text: str) -> None:
    assert Pointer(text).find(DOCUMENT) is MISSING
    assert Pointer(text).find(DOCUMENT, None) is None


# --- cache -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.floats(0, 3), st.booleans()), max_size=100))
def test_the_cache_is_as_a_plain_model_of_it(steps: list[tuple[int, int, float, bool]]) -> None:
    cache = Cache(CacheConfig(ttl_s=5, entries_max=4, bytes_max=100))
    model: OrderedDict[bytes, tuple[float, int, int]] = OrderedDict()
    now_s = 0.0
    for value, size, gap_s, is_put in steps:
        now_s += gap_s
        key = bytes([value])
        if is_put:
            cache.put(key, value, size, now_s)
            model.pop(key, None)
            model[key] = (now_s + 5, size, value)
            while len(model) > 4 or sum(entry[1] for entry in model.values()) > 100:
                model.popitem(last=False)
        else:
            entry = model.get(key)
            fresh = entry is not None and now_s < entry[0]
            assert cache.get(key, now_s) == (value if fresh else MISSING)
            model.move_to_end(key) if fresh else model.pop(key, None)
        assert (len(cache), cache.bytes) == (len(model), sum(entry[1] for entry in model.values()))
    cache.put(b"big", 1, 101, now_s)
    assert cache.get(b"big", now_s) is MISSING


@given(JSON, JSON)
def test_only_the_declared_parts_make_the_key(one: Any, two: Any) -> None:
    cache = Cache(CacheConfig(ttl_s=1, key=("/prompt", "/seed")))
    keys = [cache.key_of({"prompt": one, "other": two}), cache.key_of({"other": one, "prompt": one})]
    assert keys[0] == keys[1]
    assert cache.key_of({"prompt": one, "seed": None}) != keys[0]
    assert cache.key_of({"prompt": [one]}) != keys[0]
