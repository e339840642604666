"""The HTTP protocol layer against uvicorn and Starlette, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import aiohttp
import pytest
from http_servers import Upstream, upstream_server
from test_connectors_seam import context_of

import empd
from empd.connectors import registry
from empd.connectors.base import Result, Site
from empd.connectors.failures import (
    AuthFailed,
    BadResponse,
    ConnectorError,
    InvalidInput,
    RateLimited,
    ServiceTimeout,
    ServiceUnavailable,
)
from empd.connectors.protocol.cache import Cache
from empd.connectors.protocol.circuit_breaker import CircuitOpen, CircuitState
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_poll import RUNNING, Standing, Status, SubmitAndPoll
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.protocol.verdicts import Fault, Retry, Row, VerdictTable
from empd.connectors.upstream import UpstreamHandle
from empd.errors import FailureClass
from empd.worker.course import with_cache

FAST: dict[str, Any] = {"base_s": 0.001, "cap_s": 0.002}


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with upstream_server() as upstream:
        yield upstream


@pytest.fixture
def upstream(server: Upstream) -> Upstream:
    server.reset()
    return server


def with_connector(
    upstream: Upstream, use: Callable[[Any], Awaitable[Any]], kind: type[HTTPConnector] = HTTPConnector, **config: Any
) -> Any:
    """What `use` gives for a connector to the upstream; it is closed afterwards, and nothing of it is left."""

    async def run() -> Any:
        connector = registry.build(kind, {"base_url": upstream.base_url, "retry": FAST, **config}, Site(service="s"))
        assert await connector.start(), connector.reason
        try:
            return await use(connector)
        finally:
            await connector.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(run())


def processed(upstream: Upstream, payload: Any, kind: type[HTTPConnector] = HTTPConnector, **config: Any) -> Any:
    context = context_of(payload)
    return with_connector(upstream, lambda connector: connector.process(context.job, context), kind, **config)


def test_a_mapping_alone_makes_a_service(upstream: Upstream) -> None:
    result = processed(upstream, {"prompt": "café"}, endpoint="/echo", headers={"X-Own": "1"})
    assert result == {"got": {"prompt": "café"}, "method": "POST"}
    headers = upstream.last["headers"]
    assert headers["user-agent"] == f"empd/{empd.__version__}"
    assert (headers["content-type"], headers["x-own"]) == ("application/json", "1")
    assert "cookie" not in headers


class Three(HTTPConnector):
    """The three methods of a service."""

    verdicts: ClassVar[VerdictTable] = VerdictTable(
        Row(FailureClass.REFUSED, Retry.NEVER, Fault.JOB, "it will not", codes={"c200"})
    )

    def build_request_payload(self, job: Any, context: Any) -> Any:
        if "x" not in context.payload:
            raise InvalidInput("x is missing")
        return {"x": context.payload["x"] + 1}

    async def parse_response(self, response: HTTPResponse, job: Any, context: Any) -> Result:
        return Result(response.json()["got"]["x"], usage={"calls": 1})

    def validate_service_response(self, response: HTTPResponse) -> bool:
        return "error" not in response.json()


def test_the_three_methods_of_a_service(upstream: Upstream) -> None:
    assert processed(upstream, {"x": 1}, Three, endpoint="/echo") == Result(2, {"calls": 1})
    with pytest.raises(InvalidInput, match="x is missing"):
        processed(upstream, {}, Three, endpoint="/echo")
    with pytest.raises(ConnectorError, match="it will not: as told") as caught:
        processed(upstream, {"x": 1}, Three, endpoint="/scripted")
    assert (caught.value.failure, caught.value.retry) == (FailureClass.REFUSED, False)
    assert upstream.calls["/scripted"] == 1


def test_retries_are_made_here_and_counted_upstream(upstream: Upstream) -> None:
    upstream.script = [503, 500, 429]
    processed(upstream, {}, endpoint="/scripted")
    assert upstream.calls["/scripted"] == 4
    upstream.script = [503] * 9
    with pytest.raises(ServiceUnavailable, match="overloaded: as told") as caught:
        processed(upstream, {}, endpoint="/scripted", retry={**FAST, "attempts_max": 2})
    assert "POST /scripted: status 503" in caught.value.evidence
    assert upstream.calls["/scripted"] == 6


def test_what_asks_for_too_long_a_wait_goes_back_to_the_queue(upstream: Upstream) -> None:
    upstream.script = [429]
    with pytest.raises(RateLimited) as caught:
        processed(upstream, {}, endpoint="/scripted?after=7", retry={"wait_s_max": 5})
    assert caught.value.retry_after_s == 7
    assert upstream.calls["/scripted"] == 1


def test_a_circuit_opens_and_closes_as_configured(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        context = context_of({})
        for _ in range(2):
            with pytest.raises(ServiceUnavailable):
                await connector.process(context.job, context)
        for _ in range(5):
            with pytest.raises(CircuitOpen):
                await connector.process(context.job, context)
        assert upstream.calls["/scripted"] == 2
        (circuit,) = connector.calls.circuits.values()
        deadline_s = asyncio.get_running_loop().time() + 30
        while circuit.wait_s(asyncio.get_running_loop().time()) > 0:
            assert asyncio.get_running_loop().time() < deadline_s
            await asyncio.sleep(0.01)
        upstream.script = []
        await connector.process(context.job, context)
        assert circuit.state is CircuitState.CLOSED
        assert upstream.calls["/scripted"] == 3

    upstream.script = [503] * 9
    with_connector(
        upstream, use, endpoint="/scripted", retry={"attempts_max": 1}, circuit={"failures_max": 2, "open_s": 0.3}
    )


def test_a_circuit_of_the_server_before_holds_nobody_from_the_next(upstream: Upstream) -> None:
    holds: dict[str, str] = {}

    async def run() -> None:
        site = Site(service="s", hold=lambda key, reason="", for_s=0.0: holds.update({key: reason}))
        config = {"endpoint": "/scripted", "retry": {"attempts_max": 1}, "circuit": {"failures_max": 1, "open_s": 60}}
        connector = registry.build(HTTPConnector, {"base_url": upstream.base_url, **config}, site)
        context = context_of({})
        await connector.start()
        with pytest.raises(ServiceUnavailable):
            await connector.process(context.job, context)
        assert holds == {"circuit POST /scripted": "circuit open: POST /scripted"}
        await connector.stop()
        await connector.start()
        assert holds == {"circuit POST /scripted": ""}
        await connector.process(context.job, context)
        await connector.stop()

    upstream.script = [503]
    asyncio.run(run())


def test_time_outs_and_dead_ports_are_told_apart(upstream: Upstream) -> None:
    with pytest.raises(ServiceTimeout):
        processed(upstream, {}, endpoint="/slow", read_timeout_s=0.05, retry={"attempts_max": 1})
    with pytest.raises(ServiceTimeout):
        processed(upstream, {}, endpoint="/slow", total_timeout_s=0.05, retry={"attempts_max": 1})
    with pytest.raises(ServiceUnavailable, match=r"no connection: POST /x at 127\.0\.0\.1:1 \(Connection refused\)"):
        processed(upstream, {}, base_url="http://127.0.0.1:1", endpoint="/x")


def test_a_call_in_doubt_is_not_repeated_where_that_is_forbidden(upstream: Upstream) -> None:
    retry = {**FAST, "repeat_in_doubt": False}
    with pytest.raises(ServiceTimeout) as caught:
        processed(upstream, {}, endpoint="/slow", read_timeout_s=0.05, retry=retry)
    assert not caught.value.retry
    assert upstream.calls["/slow"] == 1
    with pytest.raises(ServiceTimeout):
        processed(
            upstream, {}, endpoint="/slow", read_timeout_s=0.05, retry=retry, idempotency_header="Idempotency-Key"
        )
    assert upstream.calls["/slow"] == 5
    assert upstream.last["headers"]["idempotency-key"]


def test_a_cancelled_job_hangs_up(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        context = context_of({})
        task = asyncio.create_task(connector.process(context.job, context))
        await asyncio.to_thread(upstream.waiting.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(upstream.gone.wait, 30)
        assert connector.calls.in_flight == 0

    with_connector(upstream, use, endpoint="/slow")


@pytest.mark.parametrize("query", ["", "?length=1"])
def test_answers_are_bounded(upstream: Upstream, query: str) -> None:
    with pytest.raises(BadResponse, match="response_bytes_max") as caught:
        processed(upstream, {}, endpoint=f"/big{query}", response_bytes_max=100_000)
    assert not caught.value.retry
    assert upstream.calls["/big"] == 1
    assert len(processed(upstream, {}, endpoint=f"/big{query}")) >= 1_000_000


def test_credentials_follow_redirects_only_to_the_same_host(upstream: Upstream) -> None:
    config = {"auth": {"type": "api_key", "api_key": "very-secret"}, "headers": {"X-Own": "mine"}}
    assert processed(upstream, {"a": 1}, endpoint="/redirect?to=here", **config)["got"] == {"a": 1}
    assert upstream.last["headers"]["x-api-key"] == "very-secret"
    assert processed(upstream, {"a": 1}, endpoint="/redirect?to=away", **config)["got"] == {"a": 1}
    assert not {"x-api-key", "x-own"} & set(upstream.last["headers"])
    in_query = {"auth": {"type": "api_key", "api_key": "very-secret", "query": "key"}}
    processed(upstream, {}, endpoint="/redirect?to=away", **in_query)
    assert "key" not in upstream.last["query"]
    with pytest.raises(BadResponse, match="redirect"):
        processed(upstream, {}, endpoint="/redirect?to=loop")
    assert upstream.calls["/redirect"] == 3 + 4


@pytest.mark.parametrize("auth", [{"type": "api_key", "api_key": "very-secret"}])
def test_no_secret_leaves_in_a_failure(upstream: Upstream, auth: dict[str, Any]) -> None:
    with pytest.raises(AuthFailed) as caught:
        processed(upstream, {}, endpoint="/leak", auth=auth)
    assert "bad key ***" in caught.value.message
    assert "very-secret" not in caught.value.message + caught.value.evidence


def test_a_token_is_fetched_once_and_renewed_once(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        async def ask() -> Any:
            return (await connector.request("GET", "/protected")).json()

        assert await asyncio.gather(*(ask() for _ in range(10))) == [{"user": "me"}] * 10
        assert upstream.tokens == 1
        upstream.good_tokens = set()
        assert await asyncio.gather(*(ask() for _ in range(10))) == [{"user": "me"}] * 10
        assert upstream.tokens == 2
        assert "token-2" not in connector.redact("a token-2 b")

    oauth = {"type": "oauth2", "token_url": f"{upstream.base_url}/token", "client_id": "me", "client_secret": "hush!"}
    with_connector(upstream, use, auth=oauth, connections_max=20)


def test_requests_of_a_connectors_own(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        answer = await connector.request(
            "PUT", "/odd/{name}/x", json=[1], path_args={"name": "a b?c"}, params={"q": "1"}
        )
        assert answer.json() == {"got": [1], "method": "PUT"}
        assert upstream.last["query"] == {"q": "1"}
        assert (await connector.request("GET", "/nowhere", accept={404})).status == 404
        form: Callable[[], Any] = lambda: aiohttp.FormData({"field": "value"})  # noqa: E731
        upstream.script = [503]
        await connector.request("POST", "/scripted", data=form)
        assert (upstream.calls["/scripted"], upstream.last["body"]) == (2, b"field=value")
        upstream.script = [503]
        with pytest.raises(ServiceUnavailable):
            await connector.request("POST", "/scripted", once=True)
        with pytest.raises(InvalidInput):
            await connector.request("POST", "/echo", json={"raw": b"bytes"})

    with_connector(upstream, use)


def test_streams_in_all_forms(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        async with connector.stream("GET", "/lines") as stream:
            assert [item["n"] async for item in stream.json_lines()] == [0, 1, 2, 3, 4]
        for sep in ("\r\n", "\n", "\r"):
            async with connector.stream("GET", "/events", params={"last": "3", "sep": sep}) as stream:
                events = [event async for event in stream.events()]
            assert [(event.id, event.event) for event in events] == [("1", "step"), ("2", "step"), ("3", "end")]
            assert events[0].data == "line 1\nmore"
        with pytest.raises(BadResponse):
            async with connector.stream("GET", "/big", response_bytes_max=100_000) as stream:
                assert [len(chunk) async for chunk in stream.chunks()]
        upstream.script = [503]
        async with connector.stream("GET", "/scripted") as stream:
            assert [line async for line in stream.lines()]

    with_connector(upstream, use)


def test_a_cut_in_mid_stream_is_a_failure(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> list[str]:
        seen = []
        with pytest.raises(ConnectorError) as caught:
            async with connector.stream("GET", "/cut") as stream:
                async for event in stream.events():
                    seen.append(event.data)  # noqa: PERF401 (what came before the cut counts)
        assert caught.value.failure in (FailureClass.BAD_RESPONSE, FailureClass.UNAVAILABLE)
        assert connector.calls.circuits["GET /cut"].state is CircuitState.OPEN
        return seen

    assert with_connector(upstream, use, circuit={"failures_max": 1}) == ['{"n": 1}']


def test_a_result_in_the_cache_needs_no_call(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        process = with_cache(connector.process, Cache(connector.config.cache))
        for payload in ({"p": 1, "n": 1}, {"p": 1, "n": 2}, {"p": 2, "n": 1}):
            context = context_of(payload)
            assert (await process(context.job, context))["got"]["p"] == payload["p"]
        assert upstream.calls["/echo"] == 2

    with_connector(upstream, use, endpoint="/echo", cache={"ttl_s": 60, "key": ["/p"]})


def test_health_asks_its_path(upstream: Upstream) -> None:
    async def use(connector: HTTPConnector) -> None:
        upstream.script = [500]
        assert not await connector.probe()
        assert "the service failed" in connector.reason
        assert await connector.probe()
        assert upstream.calls["/scripted"] == 3

    with_connector(upstream, use, health_path="/scripted")


# --- submit and poll -------------------------------------------------------------------------------------------------

POLLED: dict[str, Any] = {
    "endpoint": "/jobs",
    "status_path": "/jobs/{id}",
    "cancel_path": "/jobs/{id}/cancel",
    "poll_interval_s": 0.01,
    "poll_interval_s_max": 0.02,
}


class Polled(SubmitAndPoll):
    """The two methods of a service that is polled."""

    def parse_status(self, response: HTTPResponse, context: Any) -> Status:
        match response.json():
            case {"status": "failed"}:
                return Status(Standing.TERMINAL, error=ConnectorError("it broke upstream"))
            case {"status": "done" | "cancelled"}:
                return Status(Standing.TERMINAL)
            case {"progress": fraction}:
                return RUNNING._replace(fraction=fraction)
        raise AssertionError

    def parse_response(self, response: HTTPResponse, job: Any, context: Any) -> Any:
        return response.json()["value"]


def polled(upstream: Upstream, context: Any, *script: str, **config: Any) -> Any:
    upstream.script = list(script)

    def use(connector: Any) -> Any:
        return connector.process(context.job, context)

    return with_connector(upstream, use, Polled, **{**POLLED, **config})


def checkpoints(context: Any) -> list[UpstreamHandle]:
    found = [UpstreamHandle.decode(entry[1]) for entry in context.port.said if entry[0] == "checkpoint"]
    return [handle for handle in found if handle is not None]


def test_work_is_submitted_polled_and_collected(upstream: Upstream) -> None:
    context = context_of({"x": 1})
    assert polled(upstream, context, "busy", "busy") == 7
    assert (upstream.calls["/jobs"], upstream.calls["/jobs/1"]) == (1, 3)
    assert [(handle.id, handle.ended) for handle in checkpoints(context)] == [("", False), ("1", False)]
    assert ("progress", 0.5, "", 0, 0) in context.port.said


def test_a_successor_asks_instead_of_submitting(upstream: Upstream) -> None:
    context = context_of({})
    context.last_checkpoint = UpstreamHandle("http", "42").encode()
    assert polled(upstream, context, "busy") == 7
    assert (upstream.calls["/jobs"], upstream.calls["/jobs/42"]) == (0, 2)


def test_a_failed_status_ends_the_poll_at_once_and_the_submission(upstream: Upstream) -> None:
    context = context_of({})
    with pytest.raises(ConnectorError, match="it broke upstream"):
        polled(upstream, context, "failed", "busy")
    assert upstream.calls["/jobs/1"] == 1
    assert checkpoints(context)[-1].ended
    again = context_of({})
    again.last_checkpoint = context.last_checkpoint
    assert again.idempotency_key != context_of({}).idempotency_key
    assert polled(upstream, again) == 7
    assert upstream.calls["/jobs"] == 2


def test_an_intent_that_was_never_confirmed_is_a_doubt(upstream: Upstream) -> None:
    context = context_of({})
    context.last_checkpoint = UpstreamHandle("http").encode()
    with pytest.raises(ConnectorError, match="may have arrived") as caught:
        polled(upstream, context, retry={"repeat_in_doubt": False})
    assert not caught.value.retry
    assert upstream.calls["/jobs"] == 0
    assert polled(upstream, context) == 7


def test_with_a_key_there_is_no_doubt(upstream: Upstream) -> None:
    context = context_of({})
    assert polled(upstream, context, idempotency_header="X-Key") == 7
    assert [handle.id for handle in checkpoints(context)] == ["1"]
    assert polled(upstream, context_of({}), idempotency_header="X-Key") == 7


def test_what_is_unknown_is_neither_running_nor_done(upstream: Upstream) -> None:
    context = context_of({})
    assert polled(upstream, context, "gone", "busy", "gone", "busy") == 7
    with pytest.raises(ServiceUnavailable, match="does not know") as caught:
        polled(upstream, context_of({}), "gone", "gone", "gone")
    assert caught.value.retry


def test_cancel_reaches_the_upstream_and_ends_when_it_has_stopped(upstream: Upstream) -> None:
    async def use(connector: Polled) -> None:
        context = context_of({})
        upstream.script = ["running"]
        task = asyncio.create_task(connector.process(context.job, context))
        await asyncio.to_thread(upstream.waiting.wait, 30)
        context.mark_stopping("cancelled")
        await connector.cancel(context.job, context)
        assert upstream.calls["/jobs/1/cancel"] == 1
        await asyncio.wait_for(task, 30)

    with_connector(upstream, use, Polled, **{**POLLED, "poll_interval_s": 30, "poll_interval_s_max": 30})


def test_a_drain_leaves_the_work_upstream_alone(upstream: Upstream) -> None:
    async def use(connector: Polled) -> None:
        context = context_of({})
        upstream.script = ["running"]
        task = asyncio.create_task(connector.process(context.job, context))
        await asyncio.to_thread(upstream.waiting.wait, 30)
        context.mark_stopping("drain")
        await connector.cancel(context.job, context)
        with pytest.raises(ConnectorError, match="drain"):
            await asyncio.wait_for(task, 30)
        assert upstream.calls["/jobs/1/cancel"] == 0
        assert not checkpoints(context)[-1].ended

    with_connector(upstream, use, Polled, **POLLED)
