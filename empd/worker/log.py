"""The worker's log: one JSON object a line on stderr, which the supervisor passes to journald and the evidence file."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from empd.connectors.logger import LEVELS, ConnectorLogger, Record
from empd.connectors.redaction import Redaction

_LINE_BYTES_MAX = 8192


class Log:
    """Writes events with the fields that all lines of this process share. Never raises.

    `redact` holds the secrets of all services of this worker. `logger` is what connectors get.
    """

    def __init__(self, least: str = "info", **shared: Any) -> None:
        self.redact = Redaction()
        self.least = least
        self._encode = msgspec.json.Encoder(enc_hook=repr).encode
        self.logger = ConnectorLogger.to(self._write, least, **shared)

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None:
        """One line: time, level, event, shared fields, fields."""
        getattr(self.logger, level if level in LEVELS else "info")(event, **fields)

    def _write(self, record: Record) -> None:
        try:
            text = self._encode(record).decode()
        except (TypeError, ValueError, RecursionError):
            text = self._encode({name: repr(value) for name, value in record.items()}).decode()
        data = self.redact(text).encode()
        if len(data) > _LINE_BYTES_MAX:
            # Cut fields, not the line: what reads it is a JSON parser.
            short = {name: value if _is_short(value) else f"{value!s:.200}…" for name, value in record.items()}
            data = self.redact(self._encode(short).decode()).encode()[:_LINE_BYTES_MAX]
        try:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, data + b"\n")
        except OSError:
            return  # nobody reads: a log must not stop the work


def _is_short(value: Any) -> bool:
    return not isinstance(value, (str, bytes, list, tuple, dict)) or len(str(value)) <= 200
