"""Keeps secrets out of whatever leaves a connector: reasons, failures, evidence, logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SECRET_CHARS_MIN = 4
"""Shorter values are no secrets, and would turn every text into stars."""

HIDDEN = "***"
DEPTH_MAX = 24
"""What is nested deeper is shown as text."""

_SECRET_KEY = re.compile(
    r"api[_-]?key|secret|token(?!s|_ur|_count|_path|_max|_limit)|passw|credential|authorization|private_?key|\bsas\b|account_key",
    re.IGNORECASE,
)


class Redaction:
    """Replaces known secret values in texts."""

    def __init__(self) -> None:
        self._secrets: list[str] = []

    def learn(self, secrets: Iterable[str]) -> None:
        """From now on these are hidden. The longest go first, as one may be part of another."""
        found = {*self._secrets, *(secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN)}
        # In a line of JSON a secret may stand escaped.
        found |= {json.dumps(secret)[1:-1] for secret in found} | {
            json.dumps(secret, ensure_ascii=False)[1:-1] for secret in found
        }
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def is_secret_key(key: str) -> bool:
    """Whether what stands under this key is nobody's to read."""
    return _SECRET_KEY.search(key) is not None


def secrets_in(config: Any, hidden: bool = False) -> Iterator[str]:
    """Every text that a configuration holds under a key that says it is secret."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from secrets_in(value, hidden or is_secret_key(str(key)))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from secrets_in(value, hidden)
    elif isinstance(config, str) and hidden:
        yield config


def _hides(key: Any, value: Any) -> bool:
    """Numbers are no secrets: `max_token: 4000` says nothing."""
    return bool(value) and not isinstance(value, (int, float)) and is_secret_key(str(key))


def without_secrets(config: Any, redact: Redaction, depth: int = 0) -> Any:
    """The same configuration, fit to be shown."""
    if depth > DEPTH_MAX:
        return redact(repr(config)[:200])
    if isinstance(config, Mapping):
        return {
            str(key): HIDDEN if _hides(key, value) else without_secrets(value, redact, depth + 1)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return [without_secrets(value, redact, depth + 1) for value in config]
    return redact(config) if isinstance(config, str) else config
