"""PROTOCOL.md, the vectors and the code say the same."""

from __future__ import annotations

import json
import re
import struct
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from empd import payload, result
from empd.errors import ProtocolError
from empd.record import Record
from empd.wire import codec, frames, telemetry

WIRE = Path(codec.__file__).parent
PROTOCOL = (WIRE / "PROTOCOL.md").read_text("utf-8")
VECTORS: list[dict[str, Any]] = json.loads((WIRE / "vectors.json").read_text("utf-8"))
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "client": codec.decode_client_frame,
    "to client": codec.decode_for_client,
    "worker": codec.decode_worker_frame,
    "to worker": codec.decode_for_worker,
    "history": codec.decode_history_frame,
    "telemetry": codec.decode_telemetry,
}


class Row(typing.NamedTuple):
    """One line of a table of the page."""

    at: int
    field: str
    type: str
    default: str


def read_page() -> dict[str, tuple[int | None, list[Row]]]:
    """Every structure that the page describes: tag and fields."""
    found: dict[str, tuple[int | None, list[Row]]] = {}
    for section in re.split(r"^### ", PROTOCOL, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        name, _, tag = title.partition(" — tag ")
        rows = re.findall(r"^\| (\d+) \| [`*](\w+)[`*] \| ([^|]+) \| ([^|]+) \| .* \|$", section, flags=re.MULTILINE)
        found[name] = (int(tag) if tag else None, [Row(int(at), *rest) for at, *rest in rows])
    return found


PAGE = read_page()


def structures() -> dict[str, type[msgspec.Struct]]:
    """Every structure of the code that crosses a socket."""
    found: dict[str, type[msgspec.Struct]] = {}
    for module in (frames, telemetry, result, payload):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not Record:
                found[value.__name__] = value
    return found


STRUCTURES = structures()


def type_text(kind: Any) -> str:
    """A field's type in the page's words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return "any"
    if kind is msgspec.Raw:
        return "JobOptions"
    if origin in (typing.Union, types.UnionType):
        rest = [item for item in arguments if item is not type(None)]
        text = "Carried" if set(rest) == {bytes, payload.BlobRef} else " or ".join(map(type_text, rest))
        return text + (" or nil" if len(rest) < len(arguments) else "")
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(type_text, arguments))}]"
    if origin is dict:
        return f"map of {type_text(arguments[0])} to {type_text(arguments[1])}"
    return "bin" if kind is bytes else str(kind.__name__)


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """A field's default in the page's words."""
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return "`[]`"
    if field.default is None:
        return "`nil`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, bytes):
        return '`""` (bin)'
    return (
        f'`"{field.default}"`'
        if isinstance(field.default, str)
        else f"`{list(field.default) or '[]'}`"
        if isinstance(field.default, tuple)
        else f"`{field.default}`"
    )


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_describes_every_structure_and_no_other() -> None:
    assert set(PAGE) == set(STRUCTURES)


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_the_page_names_tag_and_fields_in_order(name: str) -> None:
    kind = STRUCTURES[name]
    tag = kind.__struct_config__.tag
    hints = typing.get_type_hints(kind)
    expected = [] if tag is None else [Row(0, "tag", "int", "required")]
    for field in msgspec.structs.fields(kind):
        expected.append(Row(len(expected), field.name, type_text(hints[field.name]), default_text(field)))
    assert PAGE[name] == (tag, expected)


def test_the_page_says_the_limits_that_hold() -> None:
    assert f"{payload.FRAME_BYTES_MAX:,} bytes" in PROTOCOL
    assert f"{payload.INLINE_BYTES_MAX:,} bytes" in PROTOCOL
    assert f"version {frames.VERSION}" in PROTOCOL.splitlines()[0]


def test_tags_of_one_socket_are_distinct() -> None:
    for union in (frames.ClientFrame, frames.BrokerToClient, frames.WorkerFrame, frames.BrokerToWorker):
        tags = [kind.__struct_config__.tag for kind in typing.get_args(union)]
        assert len(tags) == len(set(tags))


# --- the vectors -------------------------------------------------------------------------------------------------


def meaning(value: Any) -> Any:
    """A decoded frame as the vectors write it."""
    if isinstance(value, msgspec.Raw):
        return meaning(codec.decode_options(bytes(value)))
    if isinstance(value, msgspec.Struct):
        fields = {name: meaning(getattr(value, name)) for name in value.__struct_fields__}
        return {"blob": fields} if isinstance(value, payload.BlobRef) else fields
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, list | tuple):
        return [meaning(item) for item in value]
    if isinstance(value, dict):
        return {key: meaning(item) for key, item in value.items()}
    return value


def label(vector: dict[str, Any]) -> str:
    return f"{vector['frame']}-{vector['hex'][:16]}"


@pytest.mark.parametrize("vector", VECTORS, ids=label)
def test_a_vector_decodes_to_its_meaning(vector: dict[str, Any]) -> None:
    frame = DECODERS[vector["sent_by"]](bytes.fromhex(vector["hex"]))
    assert type(frame).__name__ == vector["frame"]
    assert meaning(frame) == vector["meaning"]


@pytest.mark.parametrize("vector", [v for v in VECTORS if "decode_only" not in v], ids=label)
def test_a_vector_encodes_to_its_bytes(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert codec.encode(DECODERS[vector["sent_by"]](data)) == data
    assert pack(to_array(vector["frame"], vector["meaning"])) == data


def test_every_frame_has_a_vector() -> None:
    tagged = {name for name, kind in STRUCTURES.items() if kind.__struct_config__.tag is not None}
    assert {vector["frame"] for vector in VECTORS} == tagged


# --- the page alone: a second implementation, of nothing but its tables ----------------------------------------------


class Float(float):
    """A number that the page calls a float."""


def to_array(name: str, fields: dict[str, Any]) -> list[Any]:
    """A structure's meaning as the array that the page describes."""
    _, rows = PAGE[name]
    tag, _ = PAGE[name]
    return [tag if row.field == "tag" else _as_type(row.type.strip(), fields[row.field]) for row in rows]


def _as_type(kind: str, value: Any) -> Any:
    if value is None:
        return None
    kind = kind.removesuffix(" or nil")
    if kind == "Carried":
        return to_array("BlobRef", value["blob"]) if "blob" in value else bytes.fromhex(value["bin"])
    if kind in PAGE:
        return to_array(kind, value)
    if kind == "bin":
        return bytes.fromhex(value["bin"])
    if kind.startswith("list of "):
        return [_as_type(kind.removeprefix("list of "), item) for item in value]
    if kind.startswith("["):
        return [_as_type(part, item) for part, item in zip(kind[1:-1].split(", "), value, strict=True)]
    if kind.startswith("map of str to "):
        return {key: _as_type(kind.removeprefix("map of str to "), item) for key, item in value.items()}
    return Float(value) if kind == "float" else value


def pack(value: Any) -> bytes:
    """Msgpack by hand: the shortest form of everything."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), (0xA0, 31), (0xD9, 0xDA, 0xDB)) + data
    if isinstance(value, bytes):
        return _head(len(value), None, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, list):
        return _head(len(value), (0x90, 15), (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
    items = b"".join(pack(key) + pack(item) for key, item in value.items())
    return _head(len(value), (0x80, 15), (None, 0xDE, 0xDF)) + items


def _head(size: int, fixed: tuple[int, int] | None, codes: tuple[int | None, int, int]) -> bytes:
    if fixed is not None and size <= fixed[1]:
        return bytes([fixed[0] | size])
    for code, form, limit in zip(codes, (">B", ">H", ">I"), (0xFF, 0xFFFF, 0xFFFFFFFF), strict=True):
        if code is not None and size <= limit:
            return bytes([code]) + struct.pack(form, size)
    raise ValueError(size)


def _pack_int(value: int) -> bytes:
    if -32 <= value <= 127:
        return struct.pack(">b", value)
    forms = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
    if value < 0:
        forms = ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"))
    for code, form in forms:
        try:
            return bytes([code]) + struct.pack(form, value)
        except struct.error:
            continue
    raise ValueError(value)


# --- what a peer may get wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ([1], "at least length 2"),
        ([1, 1, 0, "text"], "Expected `bytes`, got `str`"),
        ([99, 1], "Invalid value 99"),
        ([], "at least length 1"),
        ([33, 1], "Invalid value 33"),
        ([2, 1, 1, [[["s"], ["text"]]]], "Expected `bytes | array`"),
        ({"tag": 1}, "Expected `array`"),
    ],
)
def test_a_wrong_frame_is_told_what_is_wrong(array: Any, said: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(said)):
        codec.decode_client_frame(pack(array))


def test_a_frame_over_the_limit_is_not_looked_at() -> None:
    data = pack([3, 1, [1] * payload.FRAME_BYTES_MAX])
    with pytest.raises(ProtocolError, match="at most 1048576 bytes"):
        codec.decode_client_frame(data)


def test_deep_nesting_is_an_error_like_any_other() -> None:
    with pytest.raises(ProtocolError):
        codec.decode_for_client(b"\x93\x24\x01" + b"\x91" * 200_000 + b"\xc0")
