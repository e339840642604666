"""Keeps secrets out of whatever leaves a connector: reasons, failures, evidence, logs."""

from __future__ import annotations

from collections.abc import Iterable

SECRET_CHARS_MIN = 4
"""Shorter values are no secrets, and would turn every text into stars."""

HIDDEN = "***"


class Redaction:
    """Replaces known secret values in texts."""

    def __init__(self) -> None:
        self._secrets: list[str] = []

    def learn(self, secrets: Iterable[str]) -> None:
        """From now on these are hidden. The longest go first, as one may be part of another."""
        found = {*self._secrets, *(secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN)}
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text
