"""Why a service that is well takes no jobs for a while: an open circuit, a limit that its upstream has set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

HOLD_S_MAX = 3600.0
"""No hold is longer, whatever an upstream asks for; a job then finds out whether it still stands."""


class Holds:
    """Called as `Site.hold`. `on_change()` is called when there is another `reason`."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._held: dict[str, tuple[str, asyncio.TimerHandle]] = {}

    @property
    def reason(self) -> str:
        """Empty while nothing holds the service."""
        return next((reason for reason, _ in self._held.values()), "")

    def __call__(self, key: str, reason: str = "", for_s: float = 0.0) -> None:
        """Holds for that long, or lets go of `key` (without a reason, or for no time)."""
        before = self.reason
        known = self._held.pop(key, None)
        if known is not None:
            known[1].cancel()
        if reason and for_s > 0:
            timer = asyncio.get_running_loop().call_later(min(for_s, HOLD_S_MAX), self, key)
            self._held[key] = (reason, timer)
        if self.reason != before:
            self._on_change()

    def clear(self) -> None:
        """Lets go of everything."""
        for key in list(self._held):
            self(key)
