"""Plain data to structs, with every mistake named: where it stands, what is wrong, what is accepted.

msgspec stops at the first mistake; a person who edits a file wants them all. So each field is converted on its
own, and the fields' `msgspec.Meta` say in words what they take.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Report = Callable[[str, str], None]
"""Called with a key path and `what is wrong; accepted: …`."""


def described(text: str, **constraints: Any) -> msgspec.Meta:
    """A field's meaning, its bounds, and (`accepted`, `unit`) what problems and schema say of it."""
    extra: dict[str, Any] = {name: constraints.pop(name) for name in ("accepted", "unit") if name in constraints}
    return msgspec.Meta(description=text, extra=extra or None, **constraints)


COMMENT = "//"
"""Keys that begin with this are remarks, as JSON has none of its own."""

T = TypeVar("T", bound=msgspec.Struct)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_FACTORS = {"": 1} | {
    prefix + infix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}


def parse_size(text: str) -> int:
    """Bytes in `4096`, `512 MiB`, `1.5GB`, `64k`. Raises ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip().replace("_", ""))
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    return int(float(match[1]) * _FACTORS[(match[2] or "").lower()]) if match[2] or "." in match[1] else int(match[1])


def format_size(size: int) -> str:
    """A size as a person writes it: the largest binary unit that divides it, else plain bytes."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return str(size)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` when one of the known names is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def unknown_key(name: str, known: Iterable[str]) -> str:
    """The problem text for a key that nobody knows."""
    names = sorted(known)
    return f"unknown key{did_you_mean(name, names)}; accepted: {', '.join(names)}"


def meta_of(annotation: Any) -> tuple[Any, msgspec.Meta | None]:
    """A field's bare type and its `Meta`, which may stand at one member of a union."""
    if typing.get_origin(annotation) is typing.Annotated:
        bare, *notes = typing.get_args(annotation)
        return bare, next((note for note in notes if isinstance(note, msgspec.Meta)), None)
    members = [meta_of(option) for option in _options(annotation)] if _is_union(annotation) else []
    if any(meta is not None for _, meta in members):
        return typing.Union[tuple(bare for bare, _ in members)], next(meta for _, meta in members if meta)  # noqa: UP007
    return annotation, None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_size(annotation: Any) -> bool:
    """True for fields in bytes, which also take `512 MiB`."""
    meta = meta_of(annotation)[1]
    return meta is not None and (meta.extra or {}).get("unit") == "bytes"


def accepted(annotation: Any) -> str:
    """In words, what a field takes."""
    bare, meta = meta_of(annotation)
    if meta is not None and meta.extra and "accepted" in meta.extra:
        return str(meta.extra["accepted"])
    if is_size(annotation):
        return 'a number of bytes, or a size such as "512 MiB"'
    options = [option for option in _options(bare) if option is not types.NoneType]
    return " or ".join(_in_words(option, meta) for option in options)


def _options(bare: Any) -> tuple[Any, ...]:
    return typing.get_args(bare) if _is_union(bare) else (bare,)


def _in_words(bare: Any, meta: msgspec.Meta | None) -> str:
    origin = typing.get_origin(bare) or bare
    if origin is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(bare))
    if origin in (int, float):
        noun = "a whole number" if origin is int else "a number"
        return noun + _bounds(meta)
    words = {str: "a string", Path: "a path", bool: "true or false", list: "a list", tuple: "a list", dict: "an object"}
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        return f"an object with the keys {', '.join(origin.__struct_fields__)}"
    text = words.get(origin, "any value")
    inner = [item for item in typing.get_args(bare) if item is not Ellipsis]
    return text + (" of strings" if inner == [str] else "")


def _bounds(meta: msgspec.Meta | None) -> str:
    if meta is None or (meta.ge is None and meta.gt is None):
        return ""
    low = f" from {meta.ge:g}" if meta.ge is not None else f" above {meta.gt:g}"
    return low + (f" to {meta.le:g}" if meta.le is not None else "")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, (str, Path)) and str(value) and "\0" not in str(value):
        return Path(value)
    raise TypeError(f"{value!r} is not a path")


def convert(annotation: Any, value: Any, *, from_text: bool = False) -> Any:
    """One field's value. Numbers may come as strings; `from_text` also splits lists at commas.

    Raises ValueError when the value does not fit.
    """
    bare = meta_of(annotation)[0]
    if isinstance(value, str):
        if is_size(annotation):
            value = parse_size(value)
        elif from_text and any(typing.get_origin(option) in (tuple, list) for option in _options(bare)):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            value = parts if len(parts) != 1 or str not in _options(bare) else parts[0]
    try:
        result = msgspec.convert(value, annotation, strict=False, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    if isinstance(result, float) and not math.isfinite(result):
        raise ValueError("not a finite number")
    return result


def read_struct(kind: type[T], raw: Any, path: str, report: Report) -> T | None:
    """A struct from plain data; None (and at least one report) when it cannot be one."""
    if not isinstance(raw, dict):
        report(path, f"{_shown(raw)} is not an object; accepted: {accepted(kind)}")
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    sound = True
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key.startswith(COMMENT):
            continue
        if key not in fields:
            report(_join(path, key), unknown_key(key, fields))
            sound = False
            continue
        fits, result = _read(fields[key].type, value, _join(path, key), report)
        sound = sound and fits
        values[fields[key].name] = result
    for name, field in fields.items():
        if field.required and name not in raw:
            report(_join(path, name), f"missing; accepted: {accepted(field.type)}")
            sound = False
    return kind(**values) if sound else None


def _read(annotation: Any, value: Any, path: str, report: Report) -> tuple[bool, Any]:
    bare = meta_of(annotation)[0]
    origin, inner = typing.get_origin(bare), typing.get_args(bare)
    struct = next((option for option in _options(bare) if _is_struct(option)), None)
    if struct is not None and (value is not None or types.NoneType not in _options(bare)):
        result = read_struct(struct, value, path, report)
        return result is not None, result
    if origin is dict and _is_struct(inner[1]) and isinstance(value, dict):
        entries = {key: item for key, item in value.items() if not key.startswith(COMMENT)}
        results = {key: read_struct(inner[1], item, _join(path, key), report) for key, item in entries.items()}
        return None not in results.values(), results
    if origin is tuple and _is_struct(inner[0]) and isinstance(value, list):
        items = [read_struct(inner[0], item, f"{path}[{i}]", report) for i, item in enumerate(value)]
        return None not in items, tuple(items)
    try:
        return True, convert(annotation, value)
    except ValueError:
        report(path, f"{_shown(value)} does not fit; accepted: {accepted(annotation)}")
        return False, None


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
