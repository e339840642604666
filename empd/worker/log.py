"""The worker's log: one JSON object a line on stderr (at a terminal: a plain line), which the supervisor passes to
journald and the evidence file."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import msgspec

from empd.connectors.logger import LEVELS, ConnectorLogger, Record
from empd.connectors.redaction import Redaction

_LINE_BYTES_MAX = 8192
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
        self._is_plain = sys.__stderr__ is not None and sys.__stderr__.isatty()
        self._encode = msgspec.json.Encoder(enc_hook=repr).encode
        self.logger = ConnectorLogger.to(self._write, least, **shared)

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None:
        """One line: time, level, event, shared fields, fields."""
        getattr(self.logger, level if level in LEVELS else "info")(event, **fields)

    def _write(self, record: Record) -> None:
        data = self._line(record).encode()[:_LINE_BYTES_MAX]
        try:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, data + b"\n")
        except OSError:
            return  # nobody reads: a log must not stop the work

    def _line(self, record: Record) -> str:
        if self._is_plain:
            return self.redact(plain(record)).replace("\n", " ")
        try:
            text = self._encode(record).decode()
        except (TypeError, ValueError, RecursionError):
            text = self._encode({name: repr(value) for name, value in record.items()}).decode()
        text = self.redact(text)
        if len(text.encode()) <= _LINE_BYTES_MAX:
            return text
        # Cut fields, not the line: what reads it is a JSON parser.
        short = {name: value if _is_short(value) else f"{value!s:.200}…" for name, value in record.items()}
        return self.redact(self._encode(short).decode())


def plain(record: Record) -> str:
    """A record as the supervisor's lines at a terminal: when, how bad, where, what; nothing that is the same on all."""
    now_s = time.time()
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now_s)) + f",{int(now_s % 1 * 1000):03d}"
    where = " ".join(str(record[name]) for name in ("worker", "service") if record.get(name))
    facts = " ".join(f"{name}={value}" for name, value in record.items() if name not in _ELSEWHERE and value != "")
    return f"{at} {str(record.get('level', '')).upper()} {where}: {record.get('event', '')} {facts}".rstrip()


def _is_short(value: Any) -> bool:
    return not isinstance(value, (str, bytes, list, tuple, dict)) or len(str(value)) <= 200
