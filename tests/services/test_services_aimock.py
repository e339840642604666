"""The OpenAI connectors against another server that nobody here wrote: aimock, which answers from fixtures."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services_world import FAST, context_of, port_of, with_service

from empd.connectors.base import Service
from empd.connectors.failures import ConnectorError
from empd.connectors.service.openai.audio import OpenAISpeechConnector, OpenAITranscriptionConnector
from empd.connectors.service.openai.chat import OpenAIChatConnector, OpenAITextConnector
from empd.connectors.service.openai.embeddings import OpenAIEmbeddingsConnector
from empd.connectors.service.openai.images import OpenAIImageConnector
from empd.connectors.service.openai.responses import OpenAIResponsesConnector
from empd.errors import FailureClass
from tests.box import wait_until
from tests.doubles.openai_api import MP3, picture

HOME = Path(sys.prefix, "servers", "aimock")
PROGRAM = HOME / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
TEXT = "Twelve jobs stood in line, and each was done once."
CAT = picture("a cat")
WEATHER = {"toolCalls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]}
FIXTURES = [
    {"match": {"userMessage": "a story"}, "response": {"content": TEXT}},
    {"match": {"toolName": "get_weather"}, "response": WEATHER},
    {"match": {"inputText": "gravity", "endpoint": "embedding"}, "response": {"embedding": [0.5, 0.25]}},
    {
        "match": {"userMessage": "a cat", "endpoint": "image"},
        "response": {"image": {"b64Json": base64.b64encode(CAT).decode()}},
    },
    {"match": {"endpoint": "speech"}, "response": {"audio": base64.b64encode(MP3).decode()}},
    {"match": {"endpoint": "transcription"}, "response": {"transcription": {"text": "what was said"}}},
    {
        "match": {"userMessage": "too much"},
        "response": {"error": {"message": "slow", "type": "rate_limit_error", "code": "slow_down"}, "status": 429},
    },
]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: `make test` installs it"
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": FIXTURES}))
    command = [str(HOME / "node"), str(PROGRAM), "-p", "0", "-f", "fixtures.json", "--strict", "--validate-on-load"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def address() -> re.Match[str] | None:
        text = (folder / "log").read_text()
        assert process.poll() is None, text
        return re.search(r"listening on (http://127\.0\.0\.1:\d+)", text)

    try:
        yield wait_until(address, "aimock")[1] + "/v1"  # type: ignore[index]
    finally:
        process.kill()
        process.wait()


def processed(kind: type[Service], base_url: str, payload: Any) -> tuple[Any, Any]:
    async def use(connector: Any) -> Any:
        context = context_of(payload)
        try:
            found = await connector.process(context.job, context)
        except ConnectorError as error:
            found = error
        return found, port_of(context)

    return with_service(kind, {"base_url": base_url, "api_key": "any", "retry": FAST}, use)


@pytest.mark.parametrize("stream", [True, False])
def test_text(base_url: str, stream: bool) -> None:
    result, _ = processed(OpenAITextConnector, base_url, {"prompt": "a story", "stream": stream})
    assert result.value["text"] == TEXT
    assert result.value["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_tools(base_url: str, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    payload = {"messages": [{"role": "user", "content": "how is it in Oslo"}], "tools": [tool], "stream": stream}
    result, _ = processed(OpenAIChatConnector, base_url, payload)
    (call,) = result.value["tool_calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize("way", [{"background": False}, {"stream": True}])
def test_responses(base_url: str, way: dict[str, Any]) -> None:
    result, port = processed(OpenAIResponsesConnector, base_url, {"input": "a story", **way})
    assert result.value["text"] == TEXT
    assert result.value["status"] == "completed"
    assert bool(port.partials()) == bool(way.get("stream"))


def test_vectors_pictures_and_sounds(base_url: str) -> None:
    vectors, _ = processed(OpenAIEmbeddingsConnector, base_url, {"input": "gravity"})
    assert vectors.value["embeddings"] == [[0.5, 0.25]]
    made, port = processed(OpenAIImageConnector, base_url, {"prompt": "a cat"})
    assert port.store.saved == {0: CAT}
    assert made.value["assets"][0].media_type == "image/png"
    _, port = processed(OpenAISpeechConnector, base_url, {"input": "hi"})
    assert port.store.saved == {0: MP3}
    heard, _ = processed(OpenAITranscriptionConnector, base_url, {"audio": MP3})
    assert heard.value["text"] == "what was said"


def test_a_limit_is_a_limit(base_url: str) -> None:
    error, _ = processed(OpenAITextConnector, base_url, {"prompt": "too much"})
    assert (error.failure, error.retry) == (FailureClass.RATE_LIMITED, True)
