"""A case for every built-in connector: those of the kit itself, and those whose services are doubles of the tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from empd.connectors import registry
from empd.connectors.base import Service
from empd.connectors.conformance import Case, Recorded, Server, builtin
from tests.doubles.a1111 import A1111Double
from tests.doubles.comfyui import ComfyUIDouble
from tests.doubles.openai_api import KEY, OpenAIDouble, picture
from tests.services.services_comfyui import picture as graph
from tests.services.services_comfyui import sleeping

PNG = picture("given")
WORDS = {"error": {"code": "server_error", "message": "an error in a good answer"}}


# --- OpenAI ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def openai() -> AsyncIterator[Server]:
    double = OpenAIDouble()
    runner = web.AppRunner(double.app(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Server(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    finally:
        await runner.cleanup()


def _openai(payload: Any, *paths: str, **more: Any) -> dict[str, Any]:
    return {
        "server": openai,
        "api_config": {"api_key": KEY},
        "payload": payload,
        "submits": tuple(f"POST /v1/{path}" for path in paths),
        "error_body": WORDS,
        **more,
    }


def _in_background(payload: dict[str, Any], key: str, *paths: str) -> dict[str, Any]:
    return _openai(
        payload,
        "responses",
        *paths,
        long_payload={**payload, key: "endless"},
        cancels=("POST /v1/responses/*/cancel",),
        ways=1 + bool(paths),  # pictures: in the background, then streamed
    )


OPENAI: dict[str, dict[str, Any]] = {
    "OpenAIChatConnector": _openai({"messages": [{"role": "user", "content": "hi"}]}, "chat/completions"),
    "OpenAITextConnector": _openai({"prompt": "hi there"}, "chat/completions"),
    "OpenAIVisionConnector": _openai({"prompt": "what is it", "images": [PNG]}, "chat/completions"),
    "OpenAIImageConnector": _openai({"prompt": "a hat"}, "images/generations"),
    "OpenAIText2ImgConnector": _in_background({"prompt": "a hat"}, "prompt", "images/generations"),
    "OpenAIImg2ImgConnector": _in_background({"prompt": "a hat", "images": [PNG]}, "prompt", "images/edits"),
    "OpenAIResponsesConnector": _in_background({"input": "hi"}, "input"),
    "OpenAIEmbeddingsConnector": _openai({"input": "hi"}, "embeddings"),
    "OpenAITranscriptionConnector": _openai({"audio": b"ID3" + bytes(40)}, "audio/transcriptions"),
    "OpenAISpeechConnector": _openai({"input": "hi", "voice": "alloy"}, "audio/speech"),
}


# --- ComfyUI ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def comfyui() -> AsyncIterator[Server]:
    async with ComfyUIDouble() as double:
        yield Server(double.url, lambda: sum(double.counts.started.values()))


def prompt_id(request: Recorded) -> str:
    return str(request.value()["prompt_id"])


def _comfyui(payload: Any, long_payload: Any, **more: Any) -> dict[str, Any]:
    return {
        "server": comfyui,
        "api_config": {"poll_interval_s": 0.2, "outage_s_max": 0.3, "retry": {"attempts_max": 2}},
        "payload": payload,
        "long_payload": long_payload,
        "submits": ("POST /prompt",),
        "cancels": ("POST /interrupt", "POST /queue"),
        "identity": prompt_id,
        "ways": 8,  # within outage_s_max a prompt that has not arrived is sent again, under the same id
        "error_body": {"error": {"type": "prompt_no_outputs", "message": "Prompt has no outputs"}, "node_errors": {}},
        **more,
    }


SHORT, LONG = sleeping(0.1, 4), sleeping(60.0, 600)
COMFYUI: dict[str, dict[str, Any]] = {
    name: _comfyui(SHORT, LONG)
    for name in ("ComfyUIAdvancedConnector", "ComfyUILocalConnector", "ComfyUIRemoteConnector")
}
COMFYUI["ComfyUIAdvancedConnector"] = _comfyui({"workflow": SHORT}, {"workflow": LONG})
COMFYUI["ComfyUIWebSocketConnector"] = COMFYUI["ComfyUILocalConnector"]
COMFYUI["ComfyUIBatchConnector"] = _comfyui(
    {"workflow": graph(), "items": [{"parameters": {"1.color": 1}}]}, {"workflow": LONG, "items": [{}]}
)


# --- Automatic1111 ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a1111() -> AsyncIterator[Server]:
    async with A1111Double() as double:
        try:
            yield Server(double.url)
        finally:
            double.steps_max = 1
            double._state["interrupted"] = True


def task_id(request: Recorded) -> str:
    return str(request.value()["force_task_id"])


def _a1111(payload: Any, long_payload: Any, **more: Any) -> dict[str, Any]:
    return {
        "server": a1111,
        "api_config": {"poll_interval_s": 0.02},
        "payload": payload,
        "long_payload": long_payload,
        "submits": ("POST /sdapi/v1/txt2img",),
        "cancels": ("POST /sdapi/v1/interrupt",),
        "error_body": {"error": "RuntimeError", "detail": "", "body": "", "errors": "it broke"},
        **more,
    }


PICTURE: dict[str, Any] = {"prompt": "a hat", "seed": 3}
A1111: dict[str, dict[str, Any]] = {
    name: _a1111({**PICTURE, "steps": 20}, {**PICTURE, "steps": 150, "n_iter": 100, "batch_size": 1})
    for name in ("A1111CloudConnector", "A1111LocalConnector", "A1111RestConnector", "A1111WebSocketConnector")
}
A1111["A1111BatchConnector"] = _a1111(
    {"items": [{**PICTURE, "steps": 20}]},
    {"items": [{**PICTURE, "steps": 150, "n_iter": 100}]},
    waived={"resume": "what it takes up are finished items; the server keeps no result for a call to be taken up"},
)


DOUBLES = {**OPENAI, **COMFYUI, **A1111}


def case_of(name: str) -> Case:
    """The case of a built-in connector."""
    found = builtin.case_of(name)
    if found is not None:
        return found
    kind = registry.load_class(name)
    assert issubclass(kind, Service)
    return Case(connector=kind, **DOUBLES[name])
