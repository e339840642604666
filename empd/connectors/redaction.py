"""Keeps secrets out of whatever leaves a connector: reasons, failures, evidence, logs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

SECRET_CHARS_MIN = 4
"""Shorter values are no secrets, and would turn every text into stars."""

PASSING_MAX = 64
"""Secrets kept of those that are replaced by others in time."""

HIDDEN = "***"
DEPTH_MAX = 24
"""What is nested deeper is shown as text."""

_SECRET_KEY = re.compile(
    r"api[_-]?key|secret|token(?!s|_ur|_count|_path|_max|_limit)|passw|credential|authorization|private_?key|\bsas\b|account_key",
    re.IGNORECASE,
)


def _nobody(secrets: Iterable[str]) -> None:
    """Nobody else hides them."""


class Redaction:
    """Replaces known secret values in texts. `tell` is told of passing ones, where others hide them too."""

    def __init__(self, tell: Callable[[Iterable[str]], None] = _nobody) -> None:
        self._tell = tell
        self._lasting: set[str] = set()
        self._passing: dict[str, None] = {}
        self._secrets: list[str] = []

    def learn(self, secrets: Iterable[str]) -> None:
        """From now on these are hidden."""
        self._lasting |= _long_enough(secrets)
        self._sort()

    def learn_passing(self, secrets: Iterable[str]) -> None:
        """The same for tokens, which are replaced in time; of many, those not named for the longest are forgotten."""
        named = _long_enough(secrets)
        for secret in named:
            self._passing.pop(secret, None)
            self._passing[secret] = None
        while len(self._passing) > PASSING_MAX:
            del self._passing[next(iter(self._passing))]
        self._sort()
        self._tell(named)

    def _sort(self) -> None:
        """The longest go first, as one may be part of another."""
        known = {*self._lasting, *self._passing}
        # In a line of JSON a secret may stand escaped.
        known |= {json.dumps(secret, ensure_ascii=ascii)[1:-1] for secret in known for ascii in (True, False)}
        self._secrets = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _long_enough(secrets: Iterable[str]) -> set[str]:
    return {secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN}


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
