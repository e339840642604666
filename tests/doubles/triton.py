"""A double of Triton's gRPC front, in what differs from MLServer: streams are wrapped, errors inside them are text.

Facts of Triton 2.51. One model, `double`: INT32 "x" → "x" doubled. It answers in the form it was asked in.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from empd.connectors.protocol import kserve

SERVICE = "inference.GRPCInferenceService"


class Triton:
    """The server. `calls` counts by method; `failing` is how many calls it refuses before it works."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.metadata: list[dict[str, str]] = []
        self.failing: list[tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]] = []
        self.ended: list[str] = []
        self.hold = asyncio.Event()
        self.port = 0

    async def start(self, credentials: Any = None, port: int = 0) -> Triton:
        """Listens on loopback."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {name: self._handler(name) for name in _METHODS}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        return self

    async def stop(self) -> None:
        """Ends at once."""
        await self._server.stop(0)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _handler(self, name: str) -> Any:
        method = kserve.method(name)
        kinds = {
            "request_deserializer": method.request.FromString,
            "response_serializer": method.response.SerializeToString,
        }
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self.ModelStreamInfer, **kinds)

        async def answer(request: Any, context: Any) -> Any:
            await self._enter(name, context)
            return await getattr(self, name)(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, **kinds)

    async def _enter(self, name: str, context: Any) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failing:
            code, trailing = self.failing.pop(0)
            await context.abort(code, "as told", trailing)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return kserve.method("ServerReady").response(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return kserve.method("ServerMetadata").response(name="triton", version="2.51.0", extensions=["classification"])

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return kserve.method("ModelReady").response(ready=request.name == "double")

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        found = kserve.method("ModelMetadata").response(name=request.name, platform="python", versions=["1"])
        found.inputs.add(name="x", datatype="INT32", shape=[-1])
        return found

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        index = kserve.method("RepositoryIndex").response()
        index.models.add(name="double", version="1", state="READY")
        index.models.add(name="broken", version="1", state="UNAVAILABLE", reason="load failed")
        return index

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        if request.model_name != "double":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{request.model_name}' is not found")
        if request.inputs[0].datatype != "INT32":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected datatype")
        if request.parameters["wait"].bool_param:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.ended.append(request.id)
                raise
        return _doubled(request, request.parameters["size"].int64_param)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await self._enter("ModelStreamInfer", context)
        wrapped = kserve.method("ModelStreamInfer").response
        async for request in requests:
            for number in range(request.parameters["answers"].int64_param or 1):
                if request.model_name != "double":
                    yield wrapped(error_message=f"unknown model: '{request.model_name}' is not found")
                    continue
                answer = _doubled(request, 0)
                answer.parameters["number"].int64_param = number
                yield wrapped(infer_response=answer)


_METHODS = (
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "RepositoryIndex",
    "ModelInfer",
    "ModelStreamInfer",
)


def _doubled(request: Any, size: int) -> Any:
    tensor = request.inputs[0]
    answer = kserve.method("ModelInfer").response(model_name="double", model_version="1", id=request.id)
    output = answer.outputs.add(name=tensor.name, datatype="INT32", shape=tensor.shape)
    if size:
        answer.raw_output_contents.append(bytes(size))
    elif request.raw_input_contents:
        raw = request.raw_input_contents[0]
        values = struct.unpack(f"<{len(raw) // 4}i", raw)
        answer.raw_output_contents.append(struct.pack(f"<{len(values)}i", *(2 * value for value in values)))
    else:
        output.contents.int_contents.extend(2 * value for value in tensor.contents.int_contents)
    return answer
