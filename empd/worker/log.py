"""The worker's log: one JSON object a line on stderr, which the supervisor passes to journald and the evidence file.

Written here in a few lines, because structlog imports rich where it is installed: 12 MiB in every worker.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import msgspec

from empd.connectors.redaction import Redaction

LEVELS = ("debug", "info", "warning", "error")
_LINE_BYTES_MAX = 8192


class Log:
    """Writes events with the fields that all lines of this process share. Never raises.

    `redact` holds the secrets of all services of this worker.
    """

    def __init__(self, least: str = "info", **shared: Any) -> None:
        self._least = LEVELS.index(least)
        self._shared = shared
        self.redact = Redaction()
        self._encode = msgspec.json.Encoder(enc_hook=repr).encode

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None:
        """One line: time, level, event, shared fields, fields."""
        if LEVELS.index(level) < self._least:
            return
        line = {"timestamp": _timestamp(), "level": level, "event": event, **self._shared, **fields}
        data = self.redact(self._encode(line).decode()).encode()
        try:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, data[:_LINE_BYTES_MAX] + b"\n")
        except OSError:
            return  # nobody reads: a log must not stop the work


def _timestamp() -> str:
    now_s = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z"
