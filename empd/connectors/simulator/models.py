"""A simulated model server: the Open Inference Protocol over gRPC, one model, `double`: INT32 `x` → twice as much.

Parameters of a request: `duration_s` (until its answer, or its next one), `answers` (how many, of a stream).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from empd.connectors.protocol import kserve

SERVICE = "inference.GRPCInferenceService"
MODEL = "double"


class SimulatedModels:
    """The server. Messages are as Triton's: those of a stream are wrapped."""

    def __init__(self) -> None:
        self.url = ""
        self._server: Any = None

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> str:
        """Listens; returns the URL."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {name: _unary(name, answer) for name, answer in _ANSWERS.items()}
        handlers["ModelStreamInfer"] = _streaming("ModelStreamInfer", _stream)
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self.url = f"http://{host}:{self._server.add_insecure_port(f'{host}:{port}')}"
        await self._server.start()
        return self.url

    async def close(self) -> None:
        """Ends all calls."""
        await self._server.stop(0)


def _unary(name: str, answer: Any) -> Any:
    method = kserve.method(name)

    async def answered(request: Any, context: Any) -> Any:
        return await answer(method.response, request, context)

    return grpc.unary_unary_rpc_method_handler(answered, method.request.FromString, method.response.SerializeToString)


def _streaming(name: str, stream: Any) -> Any:
    method = kserve.method(name)
    return grpc.stream_stream_rpc_method_handler(stream, method.request.FromString, method.response.SerializeToString)


async def _ready(response: Any, request: Any, context: Any) -> Any:
    return response(ready=getattr(request, "name", MODEL) == MODEL)


async def _server_metadata(response: Any, request: Any, context: Any) -> Any:
    return response(name="simulated", version="1", extensions=[])


async def _model_metadata(response: Any, request: Any, context: Any) -> Any:
    found = response(name=request.name, platform="simulated", versions=["1"])
    found.inputs.add(name="x", datatype="INT32", shape=[-1])
    return found


async def _index(response: Any, request: Any, context: Any) -> Any:
    found = response()
    found.models.add(name=MODEL, version="1", state="READY")
    return found


async def _infer(response: Any, request: Any, context: Any) -> Any:
    await _check(request, context)
    await asyncio.sleep(request.parameters["duration_s"].double_param)
    return _doubled(response, request)


async def _stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    wrapped, bare = kserve.method("ModelStreamInfer").response, kserve.method("ModelInfer").response
    async for request in requests:
        await _check(request, context)
        for _ in range(request.parameters["answers"].int64_param or 1):
            await asyncio.sleep(request.parameters["duration_s"].double_param)
            yield wrapped(infer_response=_doubled(bare, request))


_ANSWERS = {
    "ServerReady": _ready,
    "ServerMetadata": _server_metadata,
    "ModelReady": _ready,
    "ModelMetadata": _model_metadata,
    "RepositoryIndex": _index,
    "ModelInfer": _infer,
}


async def _check(request: Any, context: Any) -> None:
    if request.model_name != MODEL:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{request.model_name}' is not found")
    if len(request.inputs) != 1 or request.inputs[0].datatype != "INT32":
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "one INT32 tensor is wanted")


def _doubled(response: Any, request: Any) -> Any:
    tensor = request.inputs[0]
    answer = response(model_name=MODEL, model_version="1", id=request.id)
    output = answer.outputs.add(name=tensor.name, datatype="INT32", shape=tensor.shape)
    raw = request.raw_input_contents[0] if request.raw_input_contents else b""
    values = struct.unpack(f"<{len(raw) // 4}i", raw) if raw else tensor.contents.int_contents
    output.contents.int_contents.extend(2 * value for value in values)
    return answer
