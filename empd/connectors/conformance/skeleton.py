"""What `empd connectors new` writes: a connector, its test, a mapping; they work as written."""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path

SKELETONS = Path(__file__).with_name("skeletons")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*")
_PORT = 8299


def files_of(name: str, protocol: str) -> dict[str, bytes]:
    """File name → content, for a connector called `name`. Raises ValueError for a name that no module can have."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name; accepted: letters, digits, and single dashes between them")
    stem = "".join(word[0].upper() + word[1:] for word in re.split("[_-]", name)).removesuffix("Connector")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower().removesuffix("_connector")
    if keyword.iskeyword(module) or not stem:
        raise ValueError(f"{name!r} cannot be the name of a module")
    words = {"module": module, "Stem": stem, "Class": f"{stem}Connector"}
    files = {
        f"{module}.py": _filled(f"{protocol}.txt", words).encode(),
        f"test_{module}.py": _filled(f"{protocol}.test.txt", words).encode(),
        f"{module}.json": _mapping(protocol, words).encode(),
    }
    if protocol == "grpc":
        files[f"{module}.proto"] = _filled("grpc.proto.txt", words).encode()
        files[f"{module}.binpb"] = _descriptors(module)
    return files


def _filled(file: str, words: dict[str, str]) -> str:
    text = (SKELETONS / file).read_text()
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _mapping(protocol: str, words: dict[str, str]) -> str:
    module, cls = words["module"], words["Class"]
    workers = {module: {"services": [module], "max_concurrent_jobs": 4}}
    if protocol == "python":
        service = {"connector": "PythonConnector", "api_config": {"callable": f"{module}:{module}"}}
        return json.dumps({"workers": workers, "services": {module: service}}, indent=2) + "\n"
    service = {"connector": cls, "api_config": {"base_url": f"http://127.0.0.1:{_PORT}"}}
    connectors = {cls: {"path": f"{module}:{cls}"}}
    return json.dumps({"workers": workers, "connectors": connectors, "services": {module: service}}, indent=2) + "\n"


def _descriptors(module: str) -> bytes:
    """What protoc makes of the skeleton's `.proto`."""
    from google.protobuf import descriptor_pb2

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{module}.proto", package=module, syntax="proto3")
    for message, fields in (("Request", (("text", 9), ("duration_s", 1))), ("Reply", (("text", 9),))):
        made = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields, start=1):
            made.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    service = file.service.add(name="Service")
    service.method.add(name="Process", input_type=f".{module}.Request", output_type=f".{module}.Reply")
    found: bytes = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    return found
