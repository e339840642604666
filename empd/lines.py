"""Lines of the log that stay whole: many processes write to one stderr, and its readers part it at newlines.

A pipe takes what is longer than PIPE_BUF in pieces when it is full, and others write between them; Python's text
streams write a long line and its newline apart; journald cuts at 48 KiB. So a record, and a line of anybody's, has a
bound here: a record's longest values lose their middle, other text goes on in a line of its own.
"""

from __future__ import annotations

import itertools
import os
import select
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast

LINE_BYTES_MAX = 8192
"""Newline included. Python's streams write as much at once."""

GOES_ON = "…"
"""Stands at the end of a line that is continued in the next."""

_VALUE_CHARS = (2048, 512, 128, 32)
_FIELDS_MAX = 64


def line_bytes_max(fd: int) -> int:
    """How long a line may be, newline included, that goes to this descriptor."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return LINE_BYTES_MAX
    return min(LINE_BYTES_MAX, select.PIPE_BUF) if is_pipe else LINE_BYTES_MAX


def size_bytes(text: str) -> int:
    """What a text takes on a stream that can say everything."""
    return len(text.encode(errors="backslashreplace"))


def shorten(text: str, chars_max: int) -> str:
    """The text without its middle, which is told; the last line of a traceback says the most."""
    if len(text) <= chars_max:
        return text
    kept = chars_max // 2
    return f"{text[:kept]} … {len(text) - 2 * kept} characters left out … {text[-kept:]}"


def fit(record: Mapping[str, Any], encode: Callable[[Mapping[str, Any]], str], bytes_max: int) -> str:
    """The record as `encode` writes it, in at most that many bytes."""
    text = encode(record)
    if size_bytes(text) <= bytes_max:
        return text
    fields = dict(itertools.islice(record.items(), _FIELDS_MAX))
    for chars_max in _VALUE_CHARS:
        text = encode({name: _short(value, chars_max) for name, value in fields.items()})
        if size_bytes(text) <= bytes_max:
            return text
    while size_bytes(text) > bytes_max and fields:
        fields = dict(itertools.islice(fields.items(), len(fields) // 2))
        text = encode({name: _short(value, _VALUE_CHARS[-1]) for name, value in fields.items()})
    return text


def _short(value: Any, chars_max: int) -> Any:
    return value if isinstance(value, (bool, int, float)) or value is None else shorten(str(value), chars_max)


class Lines:
    """A text stream whose lines go out one by one, and are parted where they are longer than `bytes_max`.

    What is flushed in the middle of a line becomes a line: a record of another writer would be joined to it. Nothing
    is kept here, so threads that write at the same time are no worse off than with the stream itself.
    """

    def __init__(self, stream: TextIO, bytes_max: int) -> None:
        self._stream = stream
        self._bytes_max = bytes_max
        self._begun_bytes = 0

    def write(self, text: str) -> int:
        *whole, rest = text.split("\n")
        for line in whole:
            self._put(line, "\n")
        if rest:
            self._put(rest, "")
        return len(text)

    def _put(self, line: str, end: str) -> None:
        room = self._bytes_max - 1
        data = line.encode(errors="backslashreplace")
        while self._begun_bytes + len(data) > room:
            count = max(0, room - len(GOES_ON.encode()) - self._begun_bytes)
            piece = data[:count].decode(errors="ignore")  # it may end within a character
            data = data[len(piece.encode()) :]
            self._stream.write(f"{piece}{GOES_ON}\n")
            self._begun_bytes = 0
        self._stream.write(data.decode() + end)
        self._begun_bytes = 0 if end else self._begun_bytes + len(data)

    def flush(self) -> None:
        if self._begun_bytes:
            self._put("", "\n")
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_whole() -> None:
    """In a child: what Python prints goes out in whole lines, unless somebody sits at a terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.isatty():
            continue
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
        setattr(sys, name, cast(TextIO, Lines(stream, line_bytes_max(stream.fileno()))))
