"""The OpenAI family against its double: what goes out, what comes back, and what becomes of every failure."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from services_world import FAST, context_of, port_of, texts_in, with_service

from empd.connectors import registry
from empd.connectors.base import Result, Service, Site
from empd.connectors.failures import ConnectorError, ServiceUnavailable
from empd.connectors.protocol.cache import Cache
from empd.connectors.service.openai.audio import OpenAISpeechConnector, OpenAITranscriptionConnector
from empd.connectors.service.openai.chat import OpenAIChatConnector, OpenAITextConnector, OpenAIVisionConnector
from empd.connectors.service.openai.embeddings import OpenAIEmbeddingsConnector
from empd.connectors.service.openai.faults import VERDICTS
from empd.connectors.service.openai.images import OpenAIImageConnector
from empd.connectors.service.openai.responses import OpenAIResponsesConnector
from empd.connectors.service.openai.text2img import OpenAIImg2ImgConnector, OpenAIText2ImgConnector
from empd.connectors.upstream import UpstreamHandle
from empd.errors import FailureClass
from empd.job import Cause
from empd.worker.course import with_cache
from tests.doubles.openai_api import KEY, MP3, OpenAIDouble, error_body, picture, serving

PNG = picture("given")
F = FailureClass


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[OpenAIDouble, str]]:
    double = OpenAIDouble()
    with serving(double) as url:
        yield double, url


@pytest.fixture
def double(served: tuple[OpenAIDouble, str]) -> OpenAIDouble:
    served[0].reset()
    return served[0]


@pytest.fixture
def config(served: tuple[OpenAIDouble, str], double: OpenAIDouble) -> dict[str, Any]:
    return {"base_url": served[1], "api_key": KEY, "retry": FAST, "poll_interval_s": 0.01, "poll_interval_s_max": 0.02}


def processed(kind: type[Service], config: dict[str, Any], payload: Any, **more: Any) -> tuple[Any, Any]:
    """(what `process` gives or raises, the context's port)."""
    checkpoint = more.pop("checkpoint", None)
    records = more.pop("records", None)

    async def use(connector: Any) -> Any:
        context = context_of(payload, checkpoint)
        try:
            found = await connector.process(context.job, context)
        except ConnectorError as error:
            found = error
        return found, port_of(context)

    return with_service(kind, {**config, **more}, use, records)


def sent(double: OpenAIDouble, path: str) -> Any:
    """The body of the last request of a path."""
    return [asked.body for asked in double.asked if asked.path == path][-1]


# --- chat ---------------------------------------------------


def test_a_prompt_is_streamed(double: OpenAIDouble, config: dict[str, Any]) -> None:
    records: list[Any] = []
    payload = {"prompt": "hello there", "system_prompt": "be kind", "temperature": 0.1, "ctx": {"x": 1}}
    result, port = processed(OpenAITextConnector, config, payload, records=records)
    assert result.value["text"].strip() == "you said hello there"
    assert (result.value["finish_reason"], result.value["model"]) == ("stop", "gpt-4o-mini")
    assert result.usage == {"input_tokens": 9.0, "output_tokens": 12.0, "total_tokens": 21.0}
    asked = sent(double, "/v1/chat/completions")
    assert asked["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello there"},
    ]
    assert asked["temperature"] == 0.1
    assert "ctx" not in asked
    assert "prompt" not in asked
    assert port.partials()[0]["text"].startswith("you")
    (record,) = [record for record in records if record.get("schema") == "openai"]
    assert record["token_usage"] == {"prompt": 9, "completion": 12}
    assert record["total_tokens"] == 21
    assert record["request_id"].startswith("req_")
    assert record["model"] == "gpt-4o-mini"
    assert record["response_time_ms"] > 0
    assert KEY not in json.dumps(records)


def test_messages_tools_and_formats_pass_through(double: OpenAIDouble, config: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    payload = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool], "response_format": form}
    for stream in (True, False):
        result, _ = processed(OpenAIChatConnector, config, {**payload, "stream": stream})
        call = {"id": "call_1", "type": "function", "name": "weather", "arguments": '{"city": "Oslo"}'}
        assert result.value["tool_calls"] == [call]
        assert result.value["finish_reason"] == "tool_calls"
        asked = sent(double, "/v1/chat/completions")
        assert (asked["tools"], asked["response_format"]) == ([tool], form)


def test_pictures_become_parts(double: OpenAIDouble, config: dict[str, Any]) -> None:
    given = ["https://example.com/a.png", PNG, base64.b64encode(PNG + bytes(64)).decode()]
    result, _ = processed(OpenAIVisionConnector, config, {"prompt": "what is it", "images": given, "detail": "low"})
    assert result.value["text"].strip() == "you said what is it with 3 image"
    text, *parts = sent(double, "/v1/chat/completions")["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is it"}
    urls = [part["image_url"]["url"] for part in parts]
    assert urls[0] == given[0]
    assert urls[1] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert {part["image_url"]["detail"] for part in parts} == {"low"}


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        (OpenAITextConnector, {}, "messages, or a prompt"),
        (OpenAITextConnector, "text", "must be an object"),
        (OpenAIChatConnector, {"messages": []}, "at least one message"),
        (OpenAIVisionConnector, {"prompt": "what"}, "images is missing"),
        (OpenAIVisionConnector, {"prompt": "what", "images": ["{{image}}"]}, "too short for base64"),
        (OpenAIVisionConnector, {"prompt": "what", "images": ["data:image/png;base64,§"]}, "is not base64"),
        (OpenAIImageConnector, {"size": "auto"}, "prompt is missing"),
        (OpenAIImg2ImgConnector, {"prompt": "a hat"}, "images is missing"),
        (OpenAIResponsesConnector, {"model": "m"}, "input is missing"),
        (OpenAIEmbeddingsConnector, {"input": ""}, "input is missing"),
        (OpenAITranscriptionConnector, {}, "audio is missing"),
        (OpenAISpeechConnector, {"voice": "alloy"}, "input is missing"),
    ],
)
def test_bad_payloads_are_named_before_any_call(
    double: OpenAIDouble, config: dict[str, Any], kind: type[Service], payload: Any, words: str
) -> None:
    error, _ = processed(kind, config, payload)
    assert (error.failure, error.retry) == (F.INVALID_INPUT, False)
    assert words in error.message
    assert {asked.method for asked in double.asked} <= {"GET"}


def test_a_filtered_answer_is_refused(config: dict[str, Any]) -> None:
    error, _ = processed(OpenAITextConnector, config, {"prompt": "something filtered"})
    assert (error.failure, error.retry) == (F.REFUSED, False)


def test_a_cut_in_mid_stream_is_no_result(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.fail("/v1/chat/completions", cut_after=2)
    error, _ = processed(OpenAITextConnector, config, {"prompt": "hello"})
    assert error.failure in (F.BAD_RESPONSE, F.UNAVAILABLE)
    assert error.retry
    assert double.count("/v1/chat/completions") == 1


def test_an_error_in_the_middle_of_a_good_stream(double: OpenAIDouble, config: dict[str, Any]) -> None:
    body = error_body("overloaded", "service_unavailable_error", "server_is_overloaded")
    double.fail("/v1/chat/completions", cut_after=1, body=body)
    error, _ = processed(OpenAITextConnector, config, {"prompt": "hello"})
    assert (error.failure, error.cause) == (F.UNAVAILABLE, Cause.UPSTREAM)
    assert "overloaded" in error.message


# --- failures ---------------------------------------------------

BODIES = [
    (401, error_body("Incorrect API key", "invalid_request_error", "invalid_api_key"), F.AUTH, False),
    (
        403,
        error_body("Country not supported", "request_forbidden", "unsupported_country_region_territory"),
        F.AUTH,
        False,
    ),
    (404, error_body("no model", "invalid_request_error", "model_not_found"), F.NOT_FOUND, False),
    (400, error_body("bad", "invalid_request_error"), F.INVALID_INPUT, False),
    (400, error_body("too long", "invalid_request_error", "context_length_exceeded"), F.INVALID_INPUT, False),
    (400, error_body("no", "image_generation_user_error", "moderation_blocked"), F.REFUSED, False),
    (400, error_body("no", "invalid_request_error", "content_policy_violation"), F.REFUSED, False),
    (429, error_body("slow", "rate_limit_exceeded", "rate_limit_exceeded"), F.RATE_LIMITED, True),
    (429, error_body("slow", "rate_limit_error", "slow_down"), F.RATE_LIMITED, True),
    (429, error_body("pay", "insufficient_quota", "insufficient_quota"), F.AUTH, False),
    (429, error_body("pay", "insufficient_quota", "credit_balance_exhausted"), F.AUTH, False),
    (503, error_body("busy", "service_unavailable_error", "server_is_overloaded"), F.UNAVAILABLE, True),
    (500, error_body("oops", "server_error"), F.UNAVAILABLE, True),
]


@pytest.mark.parametrize(("status", "body", "failure", "retry"), BODIES)
def test_every_error_body_has_its_class(
    double: OpenAIDouble, config: dict[str, Any], status: int, body: Any, failure: FailureClass, retry: bool
) -> None:
    double.fail("/v1/embeddings", status, body, times=20)
    error, _ = processed(OpenAIEmbeddingsConnector, config, {"input": "x"})
    assert (error.failure, error.retry) == (failure, retry)
    assert body["error"]["message"] in error.message
    assert (double.count("/v1/embeddings") > 1) == (retry and body["error"]["type"] != "server_error")


@pytest.mark.parametrize(
    ("code", "kind", "failure", "retry"),
    [
        ("429", "throttling_error", F.RATE_LIMITED, True),
        ("401", "auth_error", F.AUTH, False),
        ("model_not_found", "invalid_request_error", F.NOT_FOUND, False),
        (None, "whatever", F.UNAVAILABLE, True),
    ],
)
def test_an_error_that_comes_as_the_event_of_a_stream_is_the_error_that_it_tells(
    double: OpenAIDouble, config: dict[str, Any], code: str | None, kind: str, failure: FailureClass, retry: bool
) -> None:
    body = f"data: {json.dumps(error_body('so it is', kind, code))}\n\ndata: [DONE]\n\n"
    double.fail("/v1/chat/completions", 500, body, times=20)
    error, _ = processed(OpenAIChatConnector, config, {"prompt": "x", "model": "m"})
    assert (error.failure, error.retry) == (failure, retry)
    assert "so it is" in error.message


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("server_error", F.UNAVAILABLE),
        ("rate_limit_exceeded", F.RATE_LIMITED),
        ("bio_policy", F.REFUSED),
        ("image_content_policy_violation", F.REFUSED),
        ("data_residency_mismatch", F.AUTH),
        ("vector_store_timeout", F.TIMEOUT),
        *(
            (code, F.INVALID_INPUT)
            for code in (
                "invalid_prompt", "invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url",
                "image_too_large", "image_too_small", "image_parse_error", "invalid_image_mode", "image_file_too_large",
                "unsupported_image_media_type", "empty_image_file", "failed_to_download_image", "image_file_not_found",
            )
        ),
        ("a_code_of_tomorrow", F.BAD_RESPONSE),
    ],
)  # fmt: skip
def test_every_code_of_a_failed_response_has_its_class(
    double: OpenAIDouble, config: dict[str, Any], code: str, failure: FailureClass
) -> None:
    double.ending = {"status": "failed", "error": {"code": code, "message": "so it is"}, "output": []}
    error, port = processed(OpenAIResponsesConnector, config, {"input": "hello"})
    assert error.failure is failure
    assert "so it is" in error.message
    last = UpstreamHandle.decode(port.checkpoints()[-1])
    assert last is not None
    assert last.ended


def test_the_service_says_how_long_to_wait(double: OpenAIDouble, config: dict[str, Any]) -> None:
    body = error_body("slow", "rate_limit_exceeded", "rate_limit_exceeded")
    double.fail("/v1/embeddings", 429, body, headers={"retry-after-ms": "30"})
    result, _ = processed(OpenAIEmbeddingsConnector, config, {"input": "x"})
    assert result.value["embeddings"] == [[1.0, 0.5]]
    assert double.count("/v1/embeddings") == 2


def test_rate_headers_steer_the_limiter(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.rate_headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}

    async def use(connector: Any) -> float:
        now_s = time.monotonic()
        return float(connector.calls.limiter.earliest_s(now_s) - now_s)

    assert 300 < with_service(OpenAIChatConnector, config, use) <= 360


def test_without_a_key_the_service_stays_closed_and_says_what_to_set() -> None:
    async def reason() -> tuple[str, bool]:
        connector = registry.build(OpenAIChatConnector, {"base_url": "https://api.openai.com/v1"}, Site(service="s"))
        assert not await connector.start()
        return connector.reason, connector.may_start

    text, may_start = asyncio.run(reason())
    assert "OPENAI_API_KEY" in text
    assert not may_start


def test_codes_of_the_table_do_not_overlap() -> None:
    seen = [code for row in VERDICTS._own for code in row.codes]
    assert len(seen) == len(set(seen))


# --- embeddings, audio ---------------------------------------------------


def test_embeddings_in_order_and_from_the_cache(double: OpenAIDouble, config: dict[str, Any]) -> None:
    payload = {"input": ["a", "bcd"]}

    async def use(connector: Any) -> list[Any]:
        contexts = [context_of(payload), context_of(payload)]
        process = with_cache(connector.process, Cache(connector.config.cache))
        return [await process(context.job, context) for context in contexts]

    first, second = with_service(OpenAIEmbeddingsConnector, {**config, "cache": {"ttl_s": 60}}, use)
    assert first.value["embeddings"] == [[1.0, 0.5], [3.0, 0.5]]
    assert second.value == first.value
    assert (bool(first.usage), second.usage) == (True, None)  # nothing was bought for the second
    assert double.count("/v1/embeddings") == 1


def test_sound_in_and_out(double: OpenAIDouble, config: dict[str, Any]) -> None:
    heard, _ = processed(OpenAITranscriptionConnector, config, {"audio": b"RIFF0000WAVEfmt ", "language": "en"})
    assert heard.value["text"] == "16 bytes of sound"
    assert heard.usage == {"input_tokens": 3.0, "output_tokens": 4.0, "total_tokens": 7.0}
    assert sent(double, "/v1/audio/transcriptions")["language"] == "en"
    spoken, port = processed(OpenAISpeechConnector, config, {"input": "hi"})
    assert port.store.saved == {0: MP3}
    assert spoken["assets"][0].media_type == "audio/mpeg"
    assert sent(double, "/v1/audio/speech")["voice"] == "alloy"


# --- images ---------------------------------------------------


def no_base64(value: Any) -> bool:
    """Whether a result has only short texts."""
    return all(len(text) < 100 for text in texts_in(value))


def test_pictures_are_saved_not_returned(double: OpenAIDouble, config: dict[str, Any]) -> None:
    payload = {"prompt": "a cat", "n": 2, "output_format": "webp", "quality": "standard", "response_format": "url"}
    result, port = processed(OpenAIImageConnector, config, payload)
    assert [ref.media_type for ref in result.value["assets"]] == ["image/webp"] * 2
    assert sorted(port.store.saved) == [0, 1]
    assert result.value["quality"] == "medium"
    assert no_base64(result.value)
    assert result.usage["total_tokens"] == 50


def test_pictures_are_changed(double: OpenAIDouble, config: dict[str, Any]) -> None:
    payload = {"prompt": "a hat", "images": [PNG, PNG], "mask": PNG, "input_fidelity": "high"}
    result, port = processed(OpenAIImageConnector, config, payload)
    assert port.store.saved[0].startswith(b"\x89PNG")
    asked = sent(double, "/v1/images/edits")
    assert (asked["image"], asked["mask"], asked["input_fidelity"]) == ([PNG, PNG], PNG, "high")
    assert len(result.value["assets"]) == 1


@pytest.mark.parametrize("images", [[], [PNG]])
def test_partial_pictures(double: OpenAIDouble, config: dict[str, Any], images: list[bytes]) -> None:
    payload = {"prompt": "a cat", "partial_images": 2, "images": images}
    result, port = processed(OpenAIImageConnector, config, payload)
    assert [partial["partial_image"] for partial in port.partials()] == [0, 1]
    assert port.fractions() == sorted(port.fractions())
    assert no_base64(result.value)


def test_a_blocked_prompt_is_refused(double: OpenAIDouble, config: dict[str, Any]) -> None:
    for kind in (OpenAIImageConnector, OpenAIText2ImgConnector):
        double.ending = {"status": "failed", "error": {"code": "image_content_policy_violation", "message": "no"}}
        error, _ = processed(kind, config, {"prompt": "forbidden"})
        assert (error.failure, error.retry) == (F.REFUSED, False)
    assert double.count("/v1/images/generations") == 1


# --- Responses ---------------------------------------------------


def test_a_response_in_the_background(double: OpenAIDouble, config: dict[str, Any]) -> None:
    payload = {"dynamic_json": {"input": "hello", "reasoning": {"effort": "low"}, "bucket": "b"}}
    result, port = processed(OpenAIResponsesConnector, config, payload, save_text=True)
    assert result.value["text"] == "you said hello"
    assert result.usage == {"input_tokens": 5.0, "output_tokens": 7.0, "total_tokens": 12.0}
    assert port.store.saved == {0: b"you said hello"}
    asked = sent(double, "/v1/responses")
    assert (asked["background"], asked["store"], asked["model"]) == (True, True, "gpt-4.1")
    assert asked["reasoning"] == {"effort": "low"}
    assert "bucket" not in asked
    handle = UpstreamHandle.decode(port.checkpoints()[-1])
    assert handle is not None
    assert handle.id == result.value["id"]


def test_a_successor_asks_for_what_was_begun(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.polls = 1000
    payload = {"input": "hello"}

    async def die(connector: Any) -> bytes:
        context = context_of(payload)
        running = asyncio.ensure_future(connector.process(context.job, context))
        while not double.asked or double.count_prefix("/v1/responses/", "GET") == 0:
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.wait((running,))
        return port_of(context).checkpoints()[-1]

    checkpoint = with_service(OpenAIResponsesConnector, config, die)
    double.finish_all()
    result, _ = processed(OpenAIResponsesConnector, config, payload, checkpoint=checkpoint)
    assert result.value["text"] == "you said hello"
    assert double.count("/v1/responses") == 1


def test_cancel_reaches_the_service(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.polls = 1000

    async def use(connector: Any) -> ConnectorError:
        context = context_of({"input": "hello"})
        running = asyncio.ensure_future(connector.process(context.job, context))
        while double.count_prefix("/v1/responses/", "GET") == 0:
            await asyncio.sleep(0.005)
        context.mark_stopping("cancelled")
        await connector.cancel(context.job, context)
        with pytest.raises(ConnectorError) as ended:
            await running
        return ended.value

    error = with_service(OpenAIResponsesConnector, config, use)
    assert error.failure is F.CANCELLED
    assert len(double.cancelled) == 1


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
def test_an_incomplete_response_says_so(double: OpenAIDouble, config: dict[str, Any], reason: str) -> None:
    double.ending = {"status": "incomplete", "incomplete_details": {"reason": reason}}
    for way in ({}, {"background": False}, {"stream": True}):
        found, _ = processed(OpenAIResponsesConnector, config, {"input": "hello", **way})
        if reason == "content_filter":
            assert found.failure is F.REFUSED
        else:
            assert found.value["status"] == "incomplete"
            assert found.value["incomplete"] == reason
            assert found.value["text"].strip() == "you said hello"


def test_a_refusal_is_refused(double: OpenAIDouble, config: dict[str, Any]) -> None:
    content = [{"type": "refusal", "refusal": "I would rather not"}]
    double.ending = {"output": [{"type": "message", "role": "assistant", "content": content}]}
    error, _ = processed(OpenAIResponsesConnector, config, {"input": "hello"})
    assert (error.failure, error.message) == (F.REFUSED, "I would rather not")


def test_a_streamed_response(double: OpenAIDouble, config: dict[str, Any]) -> None:
    result, port = processed(OpenAIResponsesConnector, config, {"input": "hello", "stream": True})
    assert result.value["text"] == "you said hello"
    assert port.partials()[-1] == {"text": "you said hello "}
    double.fail("/v1/responses", cut_after=3)
    error, _ = processed(OpenAIResponsesConnector, config, {"input": "hello", "stream": True})
    assert error.failure in (F.BAD_RESPONSE, F.UNAVAILABLE)


def test_a_response_that_the_service_has_forgotten(double: OpenAIDouble, config: dict[str, Any]) -> None:
    handle = UpstreamHandle("openai_responses", "resp_gone", 1)
    error, _ = processed(OpenAIResponsesConnector, config, {"input": "hello"}, checkpoint=handle.encode())
    assert (error.failure, error.retry) == (F.UNAVAILABLE, True)
    assert double.count("/v1/responses") == 0


# --- three ways to a picture ---------------------------------------------------


def text2img(double: OpenAIDouble, config: dict[str, Any], payload: Any, **more: Any) -> tuple[Result, Any]:
    return processed(OpenAIText2ImgConnector, config, payload, **more)


def test_the_first_way_serves(double: OpenAIDouble, config: dict[str, Any]) -> None:
    result, port = text2img(double, config, {"prompt": "a cat", "size": "1024x1024"})
    assert result.value["served_by"] == "background"
    assert port.store.saved[0].startswith(b"\x89PNG")
    assert no_base64(result.value)
    (tool,) = sent(double, "/v1/responses")["tools"]
    assert (tool["type"], tool["model"], tool["size"]) == ("image_generation", "gpt-image-1", "1024x1024")


def test_the_second_way_shows_partial_pictures(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.fail("/v1/responses", 500, error_body("oops", "server_error"))
    result, port = text2img(double, config, {"prompt": "a cat"})
    assert result.value["served_by"] == "streaming"
    assert [partial["partial_image"] for partial in port.partials()] == [0, 1]
    assert sent(double, "/v1/responses")["stream"] is True


def test_the_third_way_is_the_images_api(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.fail("/v1/responses", 500, error_body("oops", "server_error"), times=2)
    result, _ = text2img(double, config, {"prompt": "a cat", "quality": "high"})
    assert result.value["served_by"] == "direct"
    assert result.value["quality"] == "high"
    assert sent(double, "/v1/images/generations")["model"] == "gpt-image-1"


def test_all_three_fail_as_one(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.fail("/v1/responses", 500, error_body("one", "server_error"), times=2)
    double.fail("/v1/images/generations", 500, error_body("three", "server_error"))
    error, port = text2img(double, config, {"prompt": "a cat"})
    assert error.failure is F.UNAVAILABLE
    assert [f"{step}: unavailable" in error.evidence for step in ("background", "streaming", "direct")] == [True] * 3
    assert "three" in error.message
    assert sum("no picture by way of" in line for line in port.lines()) == 3


def test_a_way_that_takes_too_long_is_stopped_upstream(double: OpenAIDouble, config: dict[str, Any]) -> None:
    double.polls = 1_000_000
    result, _ = text2img(double, config, {"prompt": "a cat"}, step_limit_s=0.5)
    assert result.value["served_by"] in ("streaming", "direct")
    assert len(double.cancelled) == 1


class Full:
    """A store that takes nothing."""

    async def save(self, content: Any, **options: Any) -> Any:
        raise ServiceUnavailable("no room for the asset", retry=False)


def test_where_nothing_can_be_saved_no_other_picture_is_bought(double: OpenAIDouble, config: dict[str, Any]) -> None:
    async def use(connector: Any) -> ConnectorError:
        context = context_of({"prompt": "a cat"})
        port_of(context).store = Full()  # type: ignore[assignment]
        with pytest.raises(ConnectorError) as ended:
            await connector.process(context.job, context)
        return ended.value

    error = with_service(OpenAIText2ImgConnector, config, use)
    assert "no room" in error.message
    assert double.count("/v1/responses") == 1
    assert double.count("/v1/images/generations") == 0


def test_pictures_from_pictures(double: OpenAIDouble, config: dict[str, Any]) -> None:
    payload = {"prompt": "a hat", "images": [PNG, "https://example.com/a.png"]}
    result, _ = processed(OpenAIImg2ImgConnector, config, payload)
    assert result.value["served_by"] == "background"
    (item,) = sent(double, "/v1/responses")["input"]
    kinds = [part["type"] for part in item["content"]]
    assert kinds == ["input_text", "input_image", "input_image"]
    assert item["content"][2] == {"type": "input_image", "image_url": payload["images"][1], "detail": "auto"}
    double.fail("/v1/responses", 500, error_body("oops", "server_error"), times=2)
    error, _ = processed(OpenAIImg2ImgConnector, config, payload)
    assert "not by their address" in error.message
    double.fail("/v1/responses", 500, error_body("oops", "server_error"), times=2)
    changed, _ = processed(OpenAIImg2ImgConnector, config, {"prompt": "a hat", "images": [PNG]})
    assert changed.value["served_by"] == "direct"
    assert sent(double, "/v1/images/edits")["image"] == [PNG]
