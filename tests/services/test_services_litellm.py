"""The OpenAI connectors against a server that nobody here wrote: LiteLLM's proxy, whose models answer by themselves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services_world import FAST, context_of, port_of, with_service

from empd.connectors.base import Service
from empd.connectors.failures import ConnectorError
from empd.connectors.service.openai.chat import OpenAIChatConnector, OpenAITextConnector
from empd.connectors.service.openai.embeddings import OpenAIEmbeddingsConnector
from empd.errors import FailureClass
from tests.box import wait_until

PROGRAM = Path(__file__).resolve().parents[2] / ".venv" / "servers" / "litellm" / "bin" / "litellm"
KEY = "sk-key-of-the-proxy"
START_S = 200.0


def model(name: str, behind: str, answer: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": behind, "api_key": "none", "mock_response": answer}}


CONFIG = {
    "model_list": [
        model("mocked", "openai/gpt-4o-mini", "A queue is a patient thing"),
        model("limited", "openai/gpt-4o-mini", "litellm.RateLimitError"),
        model("vectors", "openai/text-embedding-3-small", [0.1, 0.2, 0.3]),
    ],
    "general_settings": {"master_key": KEY},
}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy's address. It takes its time to start: it imports much."""
    assert PROGRAM.exists(), "the server's environment is missing: make .venv/servers/litellm/.ready"
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PROGRAM), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)

    def listens() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=30) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_until(listens, "LiteLLM", START_S)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def processed(kind: type[Service], base_url: str, payload: Any) -> tuple[Any, Any]:
    async def use(connector: Any) -> Any:
        context = context_of(payload)
        try:
            found = await connector.process(context.job, context)
        except ConnectorError as error:
            found = error
        return found, (port_of(context), await connector.models())

    return with_service(kind, {"base_url": base_url, "api_key": KEY, "retry": FAST}, use)


@pytest.mark.timeout(300)
def test_another_server_that_speaks_the_api(base_url: str) -> None:
    payload = {"model": "mocked", "prompt": "what is a queue"}
    streamed, (port, models) = processed(OpenAITextConnector, base_url, payload)
    assert streamed.value["text"] == "A queue is a patient thing"
    assert streamed.value["finish_reason"] == "stop"
    assert streamed.usage["total_tokens"] > 0
    assert port.partials()
    assert set(models) == {"mocked", "limited", "vectors"}
    whole, _ = processed(OpenAIChatConnector, base_url, {**payload, "stream": False})
    assert whole.value["text"] == streamed.value["text"]

    vectors, _ = processed(OpenAIEmbeddingsConnector, base_url, {"model": "vectors", "input": ["a"]})
    assert vectors.value["embeddings"] == [[0.1, 0.2, 0.3]]

    for stream in (True, False):
        limited, _ = processed(OpenAITextConnector, base_url, {**payload, "model": "limited", "stream": stream})
        assert (limited.failure, limited.retry) == (FailureClass.RATE_LIMITED, True)
    unknown, _ = processed(OpenAITextConnector, base_url, {**payload, "model": "no-such-model"})
    assert (unknown.failure, unknown.retry) == (FailureClass.INVALID_INPUT, False)
