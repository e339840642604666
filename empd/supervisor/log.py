"""What this process and its children log through `logging`: one JSON object a line, or plain lines at a terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from empd import lines


class JsonLines(logging.Formatter):
    """The same fields as the workers' own log lines, and the same bound."""

    def __init__(self, line_bytes_max: int = lines.LINE_BYTES_MAX) -> None:
        super().__init__()
        self._bytes_max = line_bytes_max - 1

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "timestamp": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return lines.fit(line, _encode, self._bytes_max)


def _encode(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def to_stderr(level: str) -> None:
    """Sets up logging, unless whoever called has done so."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(plain if sys.stderr.isatty() else JsonLines(lines.line_bytes_max(sys.stderr.fileno())))
    root.addHandler(handler)
    root.setLevel(level.upper())
