"""Cases of the built-in connectors whose services empd can pretend: each is a function, called when it is asked for."""

from __future__ import annotations

import contextlib
import pkgutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from empd.connectors import registry
from empd.connectors.base import Service
from empd.connectors.conformance.gate import Recorded
from empd.connectors.conformance.words import Case, Server
from empd.connectors.simulator.http import SimulatedHTTP
from empd.connectors.simulator.websocket import SimulatedWebSocket
from empd.connectors.simulator.wishes import wish_of

KEY_HEADER = "Idempotency-Key"
LONG_S = 60.0
MODELS = "/inference.GRPCInferenceService"
ERROR_BODY = {"error": {"code": "simulated_error", "message": "an error in a good answer"}}
_QUICK: dict[str, Any] = {"duration_s": 0.1, "steps": 4}
_LONG: dict[str, Any] = {"duration_s": LONG_S, "steps": 100}
_JOBS: dict[str, Any] = {
    "endpoint": "/jobs",
    "status_path": "/jobs/{id}",
    "cancel_path": "/jobs/{id}/cancel",
    "health_path": "/health",
    "idempotency_header": KEY_HEADER,
    "places": {"result": "/result", "error": "/error/message"},
}


@contextlib.asynccontextmanager
async def simulated_http() -> AsyncIterator[Server]:
    """The simulated service of `empd simulate --http`."""
    server = SimulatedHTTP()
    await server.start()
    try:
        yield Server(server.url, lambda: sum(server.work.executions.values()))
    finally:
        await server.close()


def _simulation() -> dict[str, Any]:
    return {
        "payload": {"duration_s": 0.05, "steps": 5},
        "long_payload": {"duration_s": LONG_S, "steps": 1000},
    }


def _polled(api_config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "server": simulated_http,
        "api_config": api_config,
        "payload": _QUICK,
        "long_payload": _LONG,
        "submits": ("POST /jobs",),
        "cancels": ("POST /jobs/*/cancel",),
        "error_body": ERROR_BODY,
    }


def _called(place: str, api_config: Mapping[str, Any], payload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "server": simulated_http,
        "api_config": {"endpoint": place, "health_path": "/health", "idempotency_header": KEY_HEADER, **api_config},
        "payload": payload,
        "submits": (f"POST {place}",),
        "error_body": ERROR_BODY,
    }


@contextlib.asynccontextmanager
async def simulated_websocket() -> AsyncIterator[Server]:
    """The simulated service of `empd simulate --ws`."""
    server = SimulatedWebSocket()
    await server.start()
    try:
        yield Server(server.url, lambda: sum(server.work.executions.values()))
    finally:
        await server.close()


def _socket(api_config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "server": simulated_websocket,
        "transport": "websocket",
        "api_config": api_config,
        "payload": _QUICK,
        "long_payload": _LONG,
        "submits": ("SEND simulation_job",),
        "cancels": ("SEND simulation_cancel",),
        "identity": _id_of,
    }


def _id_of(request: Recorded) -> str:
    return str(request.value()["id"])


_MESSAGES: dict[str, Any] = {
    "messages": {
        "job": {"type": "simulation_job", "id": "{job_id}", "payload": "{payload}"},
        "cancel": {"type": "simulation_cancel", "id": "{job_id}"},
        "query": {"type": "simulation_query", "id": "{job_id}"},
    },
    "words": {
        "submitted": ["simulation_started"],
        "progress": ["simulation_progress"],
        "complete": ["simulation_complete"],
        "error": ["simulation_error"],
        "cancelled": ["simulation_cancelled"],
        "unknown": ["simulation_unknown"],
    },
    "places": {"error": "/error/message"},
}


def _followed() -> dict[str, Any]:
    return {
        "server": _at_work,
        "api_config": {
            "endpoint": "/jobs/{payload/id}/events",
            "health_path": "/health",
            "pieces": {
                "progress_place": "/progress",
                "done_events": ["completed"],
                "error_events": ["failed", "cancelled"],
                "join": "last",
            },
        },
        "payload": {"id": "task-1"},
        "long_payload": {"id": "task-2"},
        "submits": ("GET /jobs/*/events",),
        "error_body": ERROR_BODY,
    }


@contextlib.asynccontextmanager
async def _at_work() -> AsyncIterator[Server]:
    """The simulated service with two pieces of work to follow: a short one and a long one."""
    server = SimulatedHTTP()
    await server.start()
    for body in (_QUICK, _LONG):
        server.work.submit(None, wish_of(body, None), "", time.monotonic())
    try:
        yield Server(server.url)
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def simulated_models() -> AsyncIterator[Server]:
    """A pretended model server; by name, as grpcio starts threads when it is loaded."""
    server = pkgutil.resolve_name("empd.connectors.simulator.models:SimulatedModels")()
    await server.start()
    try:
        yield Server(server.url)
    finally:
        await server.close()


def _models(method: str, payload: Mapping[str, Any], parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """`parameters`: what makes a job of the payload a long one."""
    api_config = {"connect_timeout_s": 1.0, "timeout_s": 20.0, **more.pop("api_config")}
    return {
        "server": simulated_models,
        "transport": "grpc",
        "api_config": api_config,
        "payload": payload,
        "long_payload": {**payload, "parameters": parameters},
        "submits": (f"CALL {MODELS}/{method}",),
        **more,
    }


def _inferred() -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]}
    return _models("ModelInfer", {"inputs": [tensor]}, {"duration_s": LONG_S}, api_config={"model": "double"})


def _streamed() -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "INT32", "shape": ["2"], "contents": {"int_contents": [1, 2]}}
    return _models(
        "ModelStreamInfer",
        {"model_name": "double", "inputs": [tensor], "parameters": {"answers": {"int64_param": 4}}},
        {"duration_s": {"double_param": LONG_S}},
        api_config={
            "method": f"{MODELS.lstrip('/')}/ModelStreamInfer",
            "descriptor_set": str(Path(registry.__file__).with_name("protocol") / "kserve.binpb"),
            "result": "/infer_response/outputs/0/contents/int_contents",
        },
        error_body=b"\n\x0cit is broken",  # Triton's way: a stream whose status is OK, and field 1 has an error
    )


_CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "SimulationConnector": _simulation,
    "PythonConnector": lambda: {
        "api_config": {"callable": "empd.connectors.conformance.sample:work"},
        "payload": {"duration_s": 0.05},
        "long_payload": {"duration_s": LONG_S},
        "isolation": "thread",
    },
    "SimulationHttpConnector": lambda: _polled({}),
    "RestAsyncConnector": lambda: _polled(_JOBS),
    "RestSyncConnector": lambda: _called(
        "/process", {"ok_place": "/status", "ok_words": ["completed"], "result": "/result"}, _QUICK
    ),
    "RestStreamConnector": lambda: _called("/stream", {"pieces": {"place": "/piece", "join": "text"}}, _QUICK),
    "SSEConnector": _followed,
    "SimulationWebsocketConnector": lambda: _socket({}),
    "CustomWebSocketConnector": lambda: _socket(_MESSAGES),
    "KServeConnector": _inferred,
    "AIServiceConnector": _streamed,
}


def names() -> list[str]:
    """The connectors that have a case of their own."""
    return list(_CASES)


def case_of(name: str) -> Case | None:
    """The case of a built-in connector; None where empd pretends no such service."""
    make = _CASES.get(name)
    if make is None:
        return None
    kind = registry.load_class(name)
    assert issubclass(kind, Service)
    return Case(connector=kind, **make())
