"""Tensors of the Open Inference Protocol: from a job's JSON to typed or raw contents of a message, and back. Pure.

A tensor in a payload is `{"name", "datatype", "shape", "data"}`; `data` is a flat or nested list (row-major), or bytes
that are the raw contents already. Raw contents are little-endian; of BYTES each element is its length (u32) and itself.
One message never mixes both forms, and FP16 and BF16 have no typed one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from empd.connectors.failures import BadResponse, InvalidInput

ELEMENTS_MAX = 1 << 28
"""More than any message can carry: a shape must not make this side reckon with numbers without end."""


class Datatype(NamedTuple):
    """How a datatype is carried: field of InferTensorContents ("" has none), struct code ("" is none), Python type."""

    field: str
    code: str
    kind: type


DATATYPES: dict[str, Datatype] = {
    "BOOL": Datatype("bool_contents", "?", bool),
    "UINT8": Datatype("uint_contents", "B", int),
    "UINT16": Datatype("uint_contents", "H", int),
    "UINT32": Datatype("uint_contents", "I", int),
    "UINT64": Datatype("uint64_contents", "Q", int),
    "INT8": Datatype("int_contents", "b", int),
    "INT16": Datatype("int_contents", "h", int),
    "INT32": Datatype("int_contents", "i", int),
    "INT64": Datatype("int64_contents", "q", int),
    "FP16": Datatype("", "e", float),
    "BF16": Datatype("", "", float),
    "FP32": Datatype("fp32_contents", "f", float),
    "FP64": Datatype("fp64_contents", "d", float),
    "BYTES": Datatype("bytes_contents", "", bytes),
}


class Tensor(NamedTuple):
    """One tensor; `data` is a flat list, or bytes: the raw contents."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | bytes


def tensor_of(value: Any) -> Tensor:
    """A tensor from a payload. Raises InvalidInput, which names the tensor and what is wrong with it."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise InvalidInput('an input is an object with "name", "datatype", "shape" and "data"')
    name, datatype, data = value["name"], value.get("datatype"), value.get("data")
    if datatype not in DATATYPES:
        raise InvalidInput(f"input {name!r}: no datatype {datatype!r}; accepted: {', '.join(DATATYPES)}")
    if isinstance(data, (bytes, bytearray, memoryview)):
        raw = bytes(data)
        shape = _shape(name, value.get("shape"))
        if datatype != "BYTES" and len(raw) != (count := math.prod(shape)) * _width(datatype):
            raise InvalidInput(f"input {name!r}: {len(raw)} bytes are not {count} values of {datatype}")
        return Tensor(name, datatype, shape, raw)
    if not isinstance(data, (list, tuple)):
        raise InvalidInput(f"input {name!r}: data is neither a list nor bytes")
    flat = _flat(data)
    shape = _shape(name, value.get("shape", [len(flat)]))
    if len(flat) != math.prod(shape):
        raise InvalidInput(f"input {name!r}: {len(flat)} values do not fill the shape {list(shape)}")
    return Tensor(name, datatype, shape, [_element(name, datatype, item) for item in flat])


def must_be_raw(tensor: Tensor) -> bool:
    """Whether the typed form cannot carry it."""
    return isinstance(tensor.data, bytes) or not DATATYPES[tensor.datatype].field


def pack(tensor: Tensor) -> bytes:
    """The raw contents. Raises InvalidInput for a value that the datatype cannot hold."""
    if isinstance(tensor.data, bytes):
        return tensor.data
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.data)
    try:
        if tensor.datatype == "BF16":
            return b"".join(map(_bfloat16, tensor.data))
        return struct.pack(f"<{len(tensor.data)}{DATATYPES[tensor.datatype].code}", *tensor.data)
    except (struct.error, OverflowError) as error:
        raise InvalidInput(f"input {tensor.name!r}: {tensor.datatype}: {error}") from None


def unpack(datatype: str, raw: bytes) -> list[Any]:
    """The values of raw contents. Raises BadResponse when they are not of that datatype."""
    try:
        if datatype == "BYTES":
            return _split(raw)
        if datatype == "BF16":
            halves = struct.unpack(f"<{len(raw) // 2}H", raw)
            return list(struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves))))
        return list(struct.unpack(f"<{len(raw) // _width(datatype)}{DATATYPES[datatype].code}", raw))
    except (struct.error, KeyError) as error:
        raise BadResponse(f"an output's raw contents are not {datatype}: {error}") from None


def text_of(item: bytes) -> str | bytes:
    """An element of BYTES as text where it is UTF-8."""
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


def _width(datatype: str) -> int:
    return 2 if datatype == "BF16" else struct.calcsize(f"<{DATATYPES[datatype].code}")


def _shape(name: str, value: Any) -> tuple[int, ...]:
    sizes = value if isinstance(value, (list, tuple)) else [None]
    if not all(type(size) is int and 0 <= size <= ELEMENTS_MAX for size in sizes):
        raise InvalidInput(f"input {name!r}: shape is no list of sizes")
    if math.prod(sizes) > ELEMENTS_MAX:
        raise InvalidInput(f"input {name!r}: the shape has more than {ELEMENTS_MAX} elements")
    return tuple(sizes)


def _flat(data: Sequence[Any]) -> list[Any]:
    level: list[Any] = list(data)
    while any(isinstance(item, (list, tuple)) for item in level):
        if not all(isinstance(item, (list, tuple)) for item in level):
            raise InvalidInput("an input's data mixes values and lists")
        level = [inner for item in level for inner in item]
    return level


def _element(name: str, datatype: str, item: Any) -> Any:
    kind = DATATYPES[datatype].kind
    if kind is bytes and isinstance(item, (str, bytes)):
        return item.encode() if isinstance(item, str) else item
    if kind is float and type(item) in (int, float):
        return float(item)
    if type(item) is kind:
        return item
    raise InvalidInput(f"input {name!r}: {item!r:.40} is no {datatype}")


def _bfloat16(value: float) -> bytes:
    """The upper half of the 32-bit float, rounded to the nearest, ties to even; NaN stays one."""
    bits = int(struct.unpack("<I", struct.pack("<f", value))[0])
    if math.isnan(value):
        return struct.pack("<H", bits >> 16 | 0x40)
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def _split(raw: bytes) -> list[bytes]:
    items, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise struct.error("an element is cut short")
        items.append(raw[at - length : at])
    return items
