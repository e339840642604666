"""Message types of gRPC services, made at run time from their descriptors: no generated code.

Each `Descriptors` has a pool of its own. Generated modules share one pool in a process, where two libraries that bring
the same protocol end each other's import; and they work only with versions of protobuf near the one that made them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

_WELL_KNOWN = "google/protobuf/"


class MethodType(NamedTuple):
    """A service's method; `path` as gRPC calls it: `/package.Service/Method`."""

    path: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool


class Descriptors:
    """The files of one or more services."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._files: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> Descriptors:
        """From a descriptor set, as `protoc --include_imports --descriptor_set_out` writes it.

        Raises OSError, or ValueError for one that is damaged or lacks an import.
        """
        found = descriptor_pb2.FileDescriptorSet()
        try:
            found.ParseFromString(path.read_bytes())
        except DecodeError as error:
            raise ValueError(f"{path}: no descriptor set: {error}") from None
        made = cls()
        made.add(found.file)
        return made

    def add(self, files: Iterable[Any]) -> None:
        """Adds files (FileDescriptorProto) in whatever order. Raises ValueError when an import is missing."""
        known = {file.name: file for file in files}
        for name in known:
            self._add(name, known, ())

    def missing(self, files: Iterable[Any]) -> list[str]:
        """Names of imports that are neither here nor among `files`."""
        files = list(files)
        known = {file.name for file in files} | self._files
        wanted = dict.fromkeys(name for file in files for name in file.dependency)
        return [name for name in wanted if name not in known and not name.startswith(_WELL_KNOWN)]

    def _add(self, name: str, known: dict[str, Any], above: tuple[str, ...]) -> None:
        if name in self._files:
            return
        file = known.get(name) or _well_known(name)
        if file is None or name in above:
            raise ValueError(f"the descriptors lack {name}; make them with --include_imports")
        for imported in file.dependency:
            self._add(imported, known, (*above, name))
        self._pool.AddSerializedFile(file.SerializeToString())
        self._files.add(name)

    def message(self, name: str) -> type[Message]:
        """The class of a message type by its full name. Raises KeyError."""
        found: type[Message] = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))
        return found

    def method(self, path: str) -> MethodType:
        """A method by its path, with or without the slash in front. Raises LookupError, which says what is there."""
        service_name, _, name = path.lstrip("/").rpartition("/")
        try:
            service = self._pool.FindServiceByName(service_name)
        except KeyError:
            raise LookupError(f"the descriptors have no service {service_name!r}") from None
        found = service.methods_by_name.get(name)
        if found is None:
            raise LookupError(f"{service_name} has no method {name!r}; it has {', '.join(service.methods_by_name)}")
        return MethodType(
            f"/{service_name}/{name}",
            message_factory.GetMessageClass(found.input_type),
            message_factory.GetMessageClass(found.output_type),
            found.client_streaming,
            found.server_streaming,
        )

    def from_json(self, kind: type[Message], value: Any) -> Message:
        """A message from its JSON form (names as in the .proto, bytes as base64). Raises ValueError."""
        if not isinstance(value, dict) and not kind.DESCRIPTOR.full_name.startswith("google.protobuf."):
            raise ValueError("not an object")
        try:
            return json_format.ParseDict(value, kind(), descriptor_pool=self._pool)
        except (json_format.ParseError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None

    def to_json(self, message: Message) -> Any:
        """Its JSON form, with the names of the .proto. 64-bit integers are texts there."""
        return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=self._pool)


def _well_known(name: str) -> Any:
    """The descriptor of a file that every protobuf library brings."""
    if not name.startswith(_WELL_KNOWN):
        return None
    try:
        module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    except ImportError:
        return None
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file
