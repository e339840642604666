"""What workers say of their services: state, address, what connectors report. In memory, gone with the worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from empd.wire.telemetry import ServiceFacts

ENTRIES_MAX = 4_096


class Facts:
    """The newest facts of every service of every worker."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], ServiceFacts] = {}

    def update(self, said: ServiceFacts) -> None:
        """Takes what a worker says; words of a former generation that come late are passed over."""
        key = (said.source, said.service)
        known = self._known.get(key)
        if known is None and len(self._known) >= ENTRIES_MAX:
            return
        if known is None or known.generation <= said.generation:
            self._known[key] = said

    def of(self, living: Iterable[str]) -> list[dict[str, Any]]:
        """The facts of workers that live, each with `worker` and `service`; those of others are forgotten."""
        alive = set(living)
        for key in [key for key in self._known if key[0] not in alive]:
            del self._known[key]
        return [
            {"worker": worker, "service": service, **said.facts}
            for (worker, service), said in sorted(self._known.items())
        ]
