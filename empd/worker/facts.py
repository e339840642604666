"""What a worker shows of its services on the status page: told to the web process when it changes, and now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from empd.connectors.redaction import Redaction, without_secrets

FACTS_BYTES_MAX = 48 * 1024
REPORT_KEYS_MAX = 64
_LARGE = ("configuration", "info", "report")
"""What is left out, in this order, when a service says more than fits."""

_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode
_decode = msgspec.msgpack.Decoder().decode


class Report:
    """The facts that a connector reports of itself, by key. `on_change()` is called when one is another."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.facts: dict[str, Any] = {}
        self._on_change = on_change

    def __call__(self, key: str, value: Any) -> None:
        """Shows a fact until it is replaced; None takes it away. Never raises."""
        if value is None:
            if self.facts.pop(key, None) is None:
                return
        elif self.facts.get(key) == value or (key not in self.facts and len(self.facts) >= REPORT_KEYS_MAX):
            return
        else:
            self.facts[key] = value
        self._on_change()


def shown(facts: dict[str, Any], redact: Redaction) -> dict[str, Any]:
    """The facts as plain data without secrets, within a frame's bounds; `cut` names what was left out for that."""
    cut: list[str] = []
    while True:
        try:
            data = _encode(facts)
        except (TypeError, ValueError, OverflowError, RecursionError):
            data = _encode({key: repr(value)[:200] for key, value in facts.items()})
        left = [key for key in _LARGE if key in facts]
        if len(data) <= FACTS_BYTES_MAX or not left:
            plain: dict[str, Any] = without_secrets(_decode(data), redact)
            return plain
        cut.append(left[0])
        facts = {**{key: value for key, value in facts.items() if key != left[0]}, "cut": cut}
