"""The double of the OpenAI API is true: the official client, which nobody here wrote, is content with it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import openai
import pytest

from tests.doubles.openai_api import KEY, MP3, OpenAIDouble, serving


@pytest.fixture
def double() -> OpenAIDouble:
    return OpenAIDouble()


@pytest.fixture
def client(double: OpenAIDouble) -> Iterator[openai.OpenAI]:
    with serving(double) as url, openai.OpenAI(api_key=KEY, base_url=url, max_retries=0, timeout=30) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="gpt-4.1", messages=messages)
    assert whole.choices[0].message.content == "you said hello"
    assert whole.usage.total_tokens == 21
    stream = client.chat.completions.create(
        model="gpt-4.1", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == "you said hello"
    assert chunks[-1].usage.total_tokens == 21
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_tools_are_streamed_in_pieces(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "hello"}]
    stream = client.chat.completions.create(model="gpt-4.1", messages=messages, tools=[tool], stream=True)
    deltas = [call for c in stream if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert "".join(call.function.arguments for call in deltas) == '{"city": "Oslo"}'


def test_images(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="gpt-image-1", prompt="a cat", n=2, output_format="webp")
    assert [base64.b64decode(image.b64_json)[:4] for image in answer.data] == [b"RIFF", b"RIFF"]
    edited = client.images.edit(model="gpt-image-1", prompt="a hat", image=[io.BytesIO(b"png"), io.BytesIO(b"png")])
    assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
    events = list(client.images.generate(model="gpt-image-1", prompt="a cat", stream=True, partial_images=2))
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 2,
        "image_generation.completed",
    ]
    with pytest.raises(openai.BadRequestError) as blocked:
        client.images.generate(model="gpt-image-1", prompt="forbidden")
    assert blocked.value.code == "moderation_blocked"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="dall-e-3", prompt="a cat")
    with pytest.raises(openai.BadRequestError):
        client.images.generate(model="gpt-image-1", prompt="a cat", response_format="b64_json")


def test_responses(client: openai.OpenAI, double: OpenAIDouble) -> None:
    response = client.responses.create(model="gpt-4.1", input="hello", background=True)
    assert response.status == "queued"
    while response.status in ("queued", "in_progress"):
        response = client.responses.retrieve(response.id)
    assert response.output_text == "you said hello"
    events = list(client.responses.create(model="gpt-4.1", input="hello", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    double.polls = 1000
    waiting = client.responses.create(model="gpt-4.1", input="hello", background=True)
    assert client.responses.cancel(waiting.id).status == "cancelled"
    double.ending = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    cut = client.responses.create(model="gpt-4.1", input="hello")
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_the_rest(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["gpt-4.1", "gpt-image-1"]
    found = client.embeddings.create(model="text-embedding-3-small", input=["a", "bcd"], encoding_format="float")
    assert [item.embedding[0] for item in found.data] == [1.0, 3.0]
    heard = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"RIFF1234"))
    assert heard.text == "8 bytes of sound"
    assert client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hi").content == MP3


def test_failures_on_demand(client: openai.OpenAI, double: OpenAIDouble) -> None:
    double.fail("/v1/models", 429, {"error": {"message": "slow", "type": "rate_limit_error", "code": "slow_down"}})
    with pytest.raises(openai.RateLimitError) as limited:
        client.models.list()
    assert limited.value.code == "slow_down"
    bare = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        bare.models.list()
