"""Templates in a configuration: a JSON value whose texts hold places for what a job brings.

    {"id": "{job_id}", "prompt": "{payload/prompt}", "size": {"width": "{payload/width?}"}, "note": "job {job_id}"}

A place is a name, with a JSON pointer into its value where that is wanted. A text that is one place and nothing more
becomes the value itself, whatever its type; within a longer text it becomes text (JSON where it is not one). Where
there is nothing to put in, the job is at fault; after `?` the member or item is left out instead. `{{` and `}}` stand
for braces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from empd.connectors.failures import InvalidInput
from empd.connectors.protocol.json_pointer import MISSING, Pointer

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAMED = re.compile(r"([a-z_]+)((?:/[^?]*)?)(\??)")

Values = Mapping[str, Any]
_Render = Callable[[Values], Any]


class Template:
    """A compiled template; `names` are those that a place may have. Raises ValueError for a place that cannot be."""

    def __init__(self, shape: Any, names: Collection[str]) -> None:
        self._names = names
        self._render = self._compile(shape)

    def render(self, values: Values) -> Any:
        """The value with all places filled. Raises InvalidInput for what the job does not bring."""
        found = self._render(values)
        return None if found is MISSING else found

    def _compile(self, shape: Any) -> _Render:
        if isinstance(shape, str):
            return self._compile_text(shape)
        if isinstance(shape, dict):
            members = [(key, self._compile(value)) for key, value in shape.items()]
            return lambda values: {key: found for key, render in members if (found := render(values)) is not MISSING}
        if isinstance(shape, list):
            items = [self._compile(item) for item in shape]
            return lambda values: [found for render in items if (found := render(values)) is not MISSING]
        return lambda values: shape

    def _compile_text(self, text: str) -> _Render:
        whole = _PLACE.fullmatch(text)
        if whole is not None and whole[1] is not None:
            return _place(whole[1], self._names)
        return TextTemplate(text, self._names).render


class TextTemplate:
    """A template that is always a text; `escape` is applied to what a job brings (quoting, in a path)."""

    def __init__(self, text: str, names: Collection[str], escape: Callable[[str], str] = str) -> None:
        self._escape = escape
        self._parts: list[_Render | str] = []
        end = 0
        for match in _PLACE.finditer(text):
            self._parts += [text[end : match.start()], match[0][0] if match[1] is None else _place(match[1], names)]
            end = match.end()
        self._parts.append(text[end:])

    def render(self, values: Values) -> str:
        """The text with all places filled. Raises InvalidInput for what the job does not bring."""
        return "".join(part if isinstance(part, str) else self._escape(_text(part(values))) for part in self._parts)


def _place(text: str, names: Collection[str]) -> _Render:
    match = _NAMED.fullmatch(text)
    if match is None or match[1] not in names:
        raise ValueError(f"{{{text}}} is no place for a value; accepted: {', '.join(sorted(names))}")
    name, pointer, optional = match[1], Pointer(match[2]), bool(match[3])

    def render(values: Values) -> Any:
        found = pointer.find(values[name])
        if found is MISSING and not optional:
            raise InvalidInput(f"the {name} has nothing at {pointer.text}")
        return found

    return render


def _text(value: Any) -> str:
    if value is MISSING:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
