"""The generic connectors: everything from configuration, against uvicorn and Starlette."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from http_servers import Upstream, upstream_server
from test_connectors_seam import context_of

from empd.connectors import registry
from empd.connectors.base import Service, Site
from empd.connectors.failures import BadResponse, ConnectorError, InvalidInput


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with upstream_server() as upstream:
        yield upstream


@pytest.fixture
def upstream(server: Upstream) -> Upstream:
    server.reset()
    return server


def process(upstream: Upstream, name: str, payload: Any, **config: Any) -> tuple[Any, Any]:
    """The result of one job, and its context."""
    context = context_of(payload)

    async def run() -> Any:
        kind = registry.load_class(name)
        config.setdefault("retry", {"base_s": 0.001, "cap_s": 0.002})
        connector = registry.build(kind, {"base_url": upstream.base_url, **config}, Site(service="s"))
        assert isinstance(connector, Service)
        assert await connector.start(), connector.reason
        try:
            return await connector.process(context.job, context)
        finally:
            await connector.stop()

    return asyncio.run(run()), context


def partials(context: Any) -> list[Any]:
    return [entry[1] for entry in context.port.said if entry[0] == "partial"]


# --- one call --------------------------------------------------------------------------------------------------------


def test_a_body_is_filled_typed_and_the_result_picked(upstream: Upstream) -> None:
    config = {
        "endpoint": "/odd/{payload/who}/x",
        "headers": {"X-Job": "{job_id}"},
        "params": {"n": "{payload/n}", "none": "{payload/none?}"},
        "body": {"text": "{payload/text}", "n": "{payload/n}", "deep": ["{payload/list}", "n is {payload/n}"]},
        "result": "/got",
    }
    payload = {"who": "a/b?c", "text": "{payload/n}", "n": 3, "list": [1, {"x": None}]}
    result, _ = process(upstream, "RestSyncConnector", payload, **config)
    assert result == {"text": "{payload/n}", "n": 3, "deep": [[1, {"x": None}], "n is 3"]}
    assert [unquote(path) for path in upstream.calls] == ["/odd/a/b?c/x"]
    assert upstream.last["query"] == {"n": "3"}
    assert len(upstream.last["headers"]["x-job"]) == 13
    with pytest.raises(InvalidInput, match="nothing at /text"):
        process(upstream, "RestSyncConnector", {}, **config)


def test_a_get_sends_its_payload_as_query(upstream: Upstream) -> None:
    process(upstream, "RestSyncConnector", {"q": "x", "n": 2, "on": True}, endpoint="/scripted", method="GET")
    assert upstream.last["query"] == {"q": "x", "n": "2", "on": "true"}
    process(
        upstream, "RestSyncConnector", {"q": "x"}, endpoint="/scripted", method="GET", params={"other": "{payload/q}"}
    )
    assert upstream.last["query"] == {"other": "x"}


def test_a_failure_in_a_good_answer(upstream: Upstream) -> None:
    with pytest.raises(BadResponse, match="as told"):
        process(upstream, "RestSyncConnector", {}, endpoint="/scripted", ok_place="/ok")
    with pytest.raises(BadResponse, match="nothing at /missing"):
        process(upstream, "RestSyncConnector", {}, endpoint="/scripted", result="/missing")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"body": {"x": "{payloads/x}"}}, "no place for a value"),
        ({"result": "x"}, "not a JSON pointer"),
        ({"endpoint": "/{payload/~2}"}, "not a JSON pointer"),
        ({"auth": {"type": "magic"}}, "auth"),
        ({"retry": {"attempts_max": 0}}, "retry.attempts_max"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(registry.ConnectorUnavailable, match=words):
        registry.build(registry.load_class("RestSyncConnector"), config, Site(service="s"))


# --- submit and poll -------------------------------------------------------------------------------------------------

ASYNC: dict[str, Any] = {
    "endpoint": "/jobs",
    "status_path": "/jobs/{id}",
    "poll_interval_s": 0.01,
    "body": {"input": "{payload}"},
    "places": {"result": "/value"},
}


def test_work_is_polled_by_words(upstream: Upstream) -> None:
    upstream.script = ["QUEUED", "Processing"]
    result, context = process(upstream, "RestAsyncConnector", {"x": 1}, **ASYNC)
    assert result == 7
    assert upstream.calls == {"/jobs": 1, "/jobs/1": 3}
    assert [entry[1] for entry in context.port.said if entry[0] == "progress"] == [0.5, 0.5]


@pytest.mark.parametrize("word", ["failed", "Error", "CANCELLED"])
def test_a_failed_word_ends_the_poll_at_once(upstream: Upstream, word: str) -> None:
    upstream.script = [word, "done"]
    with pytest.raises(ConnectorError, match=f"says {word.lower()}"):
        process(upstream, "RestAsyncConnector", {}, **ASYNC)
    assert upstream.calls["/jobs/1"] == 1


def test_percent_and_no_id(upstream: Upstream) -> None:
    upstream.script = ["busy"]
    _, context = process(upstream, "RestAsyncConnector", {}, **ASYNC, progress_scale=100)
    assert context.fraction == 0.005
    with pytest.raises(BadResponse, match="no id at /job_id"):
        process(upstream, "RestAsyncConnector", {}, **{**ASYNC, "places": {"id": "/job_id"}})


# --- streams ---------------------------------------------------------------------------------------------------------

CHAT = {"endpoint": "/tokens", "pieces": {"place": "/choices/0/text", "join": "text", "progress_place": "/done"}}


def test_pieces_are_partial_results_and_the_whole_is_the_result(upstream: Upstream) -> None:
    result, context = process(upstream, "RestStreamConnector", {}, **CHAT)
    assert result == "Hello!"
    assert partials(context) == ["Hel", "lo", "!"]
    assert context.fraction == pytest.approx(2 / 3)
    assert upstream.last["headers"]["accept"] == "text/event-stream"


@pytest.mark.parametrize(("query", "words"), [("?short=1", "before its last item"), ("?fail=1", "no more")])
def test_a_stream_that_does_not_come_to_its_end_is_a_failure(upstream: Upstream, query: str, words: str) -> None:
    with pytest.raises(BadResponse, match=words):
        process(upstream, "RestStreamConnector", {}, **{**CHAT, "endpoint": f"/tokens{query}"})


def test_a_cut_is_a_failure_too(upstream: Upstream) -> None:
    with pytest.raises(ConnectorError) as caught:
        process(upstream, "RestStreamConnector", {}, endpoint="/cut", last_required=False)
    assert caught.value.retry


def test_lines_of_json(upstream: Upstream) -> None:
    config = {"endpoint": "/lines", "framing": "ndjson", "last_required": False, "pieces": {"place": "/n"}}
    assert process(upstream, "RestStreamConnector", {}, **config)[0] == [0, 1, 2, 3, 4]


def test_events_are_followed_over_broken_connections(upstream: Upstream) -> None:
    config = {"endpoint": "/events", "params": {"last": 9, "stop": 4}, "reconnect_s": 0.001}
    result, context = process(upstream, "SSEConnector", {}, **config, pieces={"done_events": ["end"]})
    assert result == [f"line {number}\nmore" for number in range(1, 10)]
    assert upstream.calls["/events"] == 3
    assert upstream.last["headers"]["last-event-id"] == "8"
    assert partials(context) == result


def test_reconnects_are_bounded(upstream: Upstream) -> None:
    config = {"endpoint": "/events", "params": {"last": 0}, "reconnect_s": 0.001, "reconnects_max": 2}
    with pytest.raises(BadResponse, match="ended 3 times"):
        process(upstream, "SSEConnector", {}, **config)
    assert upstream.calls["/events"] == 3


def test_long_polling_follows_its_cursor(upstream: Upstream) -> None:
    config = {
        "endpoint": "/poll",
        "mode": "long_poll",
        "last_required": False,
        "pieces": {"place": "/n", "join": "last"},
    }
    assert process(upstream, "SSEConnector", {}, **config)[0] == 4
    assert upstream.calls["/poll"] == 4


def test_none_of_these_is_long() -> None:
    for name in ("RestSyncConnector", "RestAsyncConnector", "RestStreamConnector", "SSEConnector"):
        source = inspect.getsource(inspect.getmodule(registry.load_class(name)))
        assert len(source.splitlines()) <= 150
