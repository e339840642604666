"""What a gRPC server says of its own services (server reflection, version 1), as descriptors.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError, Message

from empd.connectors.failures import BadResponse
from empd.connectors.protocol.descriptors import Descriptors, MethodType

FILES_MAX = 1_000
"""More imports than this are no service but a mistake, or a malice."""

_REFLECTION = Descriptors.read(Path(__file__).with_name("reflection.binpb"))
METHOD: MethodType = _REFLECTION.method("grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
METHODS = (METHOD, METHOD._replace(path=METHOD.path.replace(".v1.", ".v1alpha.")))
"""The same messages under the version's former name, which is all that many servers have."""

Ask = Callable[[Message], Awaitable[bytes]]
"""Sends one request to the server; returns its answer. Raises ConnectorError."""


async def reflected(service: str, ask: Ask) -> Descriptors:
    """The descriptors of a service and of all that it imports. Raises LookupError when the server does not have it."""
    files: dict[str, Any] = {}
    found = Descriptors()
    await _collect(METHOD.request(file_containing_symbol=service), ask, files)
    while missing := found.missing(files.values()):
        if len(files) + len(missing) > FILES_MAX:
            raise BadResponse(f"the service's descriptors need more than {FILES_MAX} files", retry=False)
        for name in missing:
            await _collect(METHOD.request(file_by_filename=name), ask, files)
            if name not in files:
                raise BadResponse(f"the server's reflection does not give {name}", retry=False)
    try:
        found.add(files.values())
    except (ValueError, TypeError) as error:
        raise BadResponse(f"the server's descriptors do not fit together: {error}", retry=False) from None
    return found


async def _collect(request: Any, ask: Ask, files: dict[str, Any]) -> None:
    try:
        answer: Any = METHOD.response.FromString(await ask(request))
        if answer.HasField("error_response"):
            name = request.file_containing_symbol or request.file_by_filename
            raise LookupError(f"the server's reflection says of {name}: {answer.error_response.error_message}")
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            files[file.name] = file
    except DecodeError as error:
        raise BadResponse(f"the server's reflection is not readable: {error}", retry=False) from None
