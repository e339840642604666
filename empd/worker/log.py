"""The worker's log: one JSON object a line on the daemon's stderr (at a terminal: a plain line)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from empd import lines
from empd.connectors.logger import LEVELS, ConnectorLogger, Record
from empd.connectors.redaction import Redaction

_ELSEWHERE = frozenset(
    {"timestamp", "level", "event", "machine", "worker", "generation", "pid", "service", "service_type", "connector"}
    | {"protocol"}
)
"""What a plain line has at its beginning, or leaves out."""


class Log:
    """Writes events with the fields that all lines of this process share. Never raises.

    `redact` holds the secrets of all services of this worker. `logger` is what connectors get.
    """

    def __init__(self, least: str = "info", **shared: Any) -> None:
        self.redact = Redaction()
        self.least = least
        self._fd = sys.__stderr__.fileno() if sys.__stderr__ else 2
        self._is_plain = os.isatty(self._fd)
        self._bytes_max = lines.line_bytes_max(self._fd) - 1
        self._encoder = msgspec.json.Encoder(enc_hook=repr)
        self.logger = ConnectorLogger.to(self._write, least, **shared)

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None:
        """One line: time, level, event, shared fields, fields."""
        getattr(self.logger, level if level in LEVELS else "info")(event, **fields)

    def _write(self, record: Record) -> None:
        try:
            os.write(self._fd, self._line(record).encode(errors="backslashreplace") + b"\n")
        except OSError:
            return  # nobody reads: a log must not stop the work

    def _line(self, record: Record) -> str:
        if self._is_plain:
            return lines.shorten(self.redact(plain(record)).replace("\n", " "), lines.LINE_BYTES_MAX)
        text = self._encode(record)
        if lines.size_bytes(text) <= self._bytes_max:
            return text
        # From the redacted text: where a value is cut, half a secret would not be known for one.
        return lines.fit(msgspec.json.decode(text), self._encode, self._bytes_max)

    def _encode(self, record: Mapping[str, Any]) -> str:
        try:
            text = self._encoder.encode(record).decode()
        except (TypeError, ValueError, RecursionError):
            text = self._encoder.encode({name: _sayable(value) for name, value in record.items()}).decode()
        hidden = self.redact(text)
        if hidden is not text and not _is_json(hidden):
            # A secret that looks like a number stood among the digits of one.
            texts = {name: self.redact(str(value)) for name, value in record.items()}
            hidden = self._encoder.encode(texts).decode()
        return hidden


def plain(record: Record) -> str:
    """A record as the supervisor's lines at a terminal: when, how bad, where, what; nothing that is the same on all."""
    now_s = time.time()
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now_s)) + f",{int(now_s % 1 * 1000):03d}"
    where = " ".join(str(record[name]) for name in ("worker", "service") if record.get(name))
    facts = " ".join(f"{name}={value}" for name, value in record.items() if name not in _ELSEWHERE and value != "")
    return f"{at} {str(record.get('level', '')).upper()} {where}: {record.get('event', '')} {facts}".rstrip()


def _sayable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return (value if isinstance(value, str) else repr(value)).encode(errors="backslashreplace").decode()


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
