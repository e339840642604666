"""What all protocols share, without a socket: retry, limits, circuits, cache, verdicts, JSON pointers, credentials."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import itertools
import math
from collections import OrderedDict
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from empd.connectors.base import Site
from empd.connectors.failures import AuthFailed, BadResponse, ConnectorError, RateLimited
from empd.connectors.protocol import auth, json_pointer
from empd.connectors.protocol.cache import Cache, CacheConfig
from empd.connectors.protocol.calls import ENDPOINTS_MAX, Calls, Rules
from empd.connectors.protocol.circuit_breaker import CircuitBreaker, CircuitConfig, CircuitOpen, CircuitState
from empd.connectors.protocol.json_pointer import MISSING, Pointer
from empd.connectors.protocol.oauth import TokenSource
from empd.connectors.protocol.rate_headers import Left, left_of, reset_s
from empd.connectors.protocol.rate_limit import RateLimitConfig, RateLimiter
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


# --- credentials -----------------------------------------------------------------------------------------------------


def test_credentials_as_headers_and_query() -> None:
    assert auth.headers_of(auth.ApiKeyAuth(api_key="k", header="X-Goog-Api-Key")) == {"X-Goog-Api-Key": "k"}
    assert auth.headers_of(auth.ApiKeyAuth(api_key="k", header="Authorization", prefix="Key ")) == {
        "Authorization": "Key k"
    }
    in_query = auth.ApiKeyAuth(api_key="k", query="token")
    assert (auth.headers_of(in_query), auth.query_of(in_query)) == ({}, {"token": "k"})
    assert auth.headers_of(auth.BearerAuth(token="t")) == {"Authorization": "Bearer t"}
    assert auth.headers_of(auth.BasicAuth(username="Aladdin", password="open sesame")) == {
        "Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    }
    assert auth.headers_of(None) == {}
    assert "open sesame" in auth.secrets_of(auth.BasicAuth(username="Aladdin", password="open sesame"))


class TokenEndpoint:
    """Answers token requests in order, and keeps them."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, str], str]] = []

    async def post(self, url: str, headers: dict[str, str], body: str) -> str:
        self.asked.append((headers, body))
        await asyncio.sleep(0)
        return self.answers[len(self.asked) - 1]


def token(value: str, **more: Any) -> str:
    fields = {"access_token": value, "token_type": "Bearer", "expires_in": 100, **more}
    return str(fields).replace("'", '"')


def source(endpoint: TokenEndpoint, clock: Any, **config: Any) -> TokenSource:
    whole = {"token_url": "https://example.test/token", "client_id": "me", "client_secret": "secret", **config}
    return TokenSource(auth.OAuth2Auth(**whole), endpoint.post, clock, lambda secrets: None)


def test_one_fetch_serves_all_and_one_renewal_too() -> None:
    async def run() -> None:
        now_s = 0.0
        endpoint = TokenEndpoint(token("first"), token("second"), token("third"))
        tokens = source(endpoint, lambda: now_s, scope=("a", "b"), extra={"audience": "x"})
        assert set(await asyncio.gather(*(tokens.get() for _ in range(20)))) == {"first"}
        assert set(await asyncio.gather(*(tokens.renew("first") for _ in range(20)))) == {"second"}
        now_s = 69.0
        assert await tokens.get() == "second"
        now_s = 71.0
        assert await tokens.get() == "third"
        headers, body = endpoint.asked[0]
        assert headers["Authorization"] == auth.basic("me", "secret")
        assert {"grant_type=client_credentials", "scope=a+b", "audience=x"} <= set(body.split("&"))
        assert len(endpoint.asked) == 3

    asyncio.run(run())


def test_a_refresh_token_is_used_and_replaced() -> None:
    async def run() -> None:
        endpoint = TokenEndpoint(token("one", refresh_token="r2"), token("two"))
        tokens = source(endpoint, lambda: 0.0, refresh_token="r1", client_in="body")
        await tokens.get()
        await tokens.renew("one")
        assert "refresh_token=r1" in endpoint.asked[0][1]
        assert "refresh_token=r2" in endpoint.asked[1][1]
        assert "client_secret=secret" in endpoint.asked[0][1]
        assert "Authorization" not in endpoint.asked[0][0]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [('{"error": "invalid_client"}', AuthFailed), ("<html>", BadResponse), ('{"token_type": "x"}', BadResponse)],
)
def test_a_token_endpoint_that_gives_none(answer: str, kind: type[ConnectorError]) -> None:
    async def run() -> None:
        await source(TokenEndpoint(answer), lambda: 0.0).get()

    with pytest.raises(kind):
        asyncio.run(run())


def test_secrets_do_not_travel_in_the_open() -> None:
    with pytest.raises(AuthFailed, match="not https"):
        source(TokenEndpoint(), lambda: 0.0, token_url="http://example.test/token")


def test_a_job_that_is_cancelled_leaves_the_token_to_the_others() -> None:
    async def run() -> None:
        tokens = source(TokenEndpoint(token("first")), lambda: 0.0)
        one, two = asyncio.create_task(tokens.get()), asyncio.create_task(tokens.get())
        await asyncio.sleep(0)
        one.cancel()
        assert await two == "first"
        await tokens.close()

    asyncio.run(run())
