"""The life of one connection that is kept up: state × event → state and action, as one table. No I/O, no clock.

         WANTED                OPENED
    DOWN ──────▶ CONNECTING ──────────────▶ OPEN
      ▲  ◀────── FAILED        │   ▲          │ LOST
      │ (nothing to save)      │   │ WAITED   ▼
      │                 FAILED └─▶ WAITING ◀──┘
      └──────────── budget SPENT, or REFUSED, or the peer said goodbye (ENDED)

A first attempt that fails gives up at once: nothing depends on it yet, and the health check comes again. After a
loss there may be jobs to save, so attempts go on with a growing wait (`retry.delay_s`) until the budget is spent.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class LinkState(enum.StrEnum):
    """Where the connection stands."""

    DOWN = "down"
    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"


class LinkEvent(enum.StrEnum):
    """What can happen to it."""

    WANTED = "wanted"
    OPENED = "opened"
    FAILED = "failed"
    REFUSED = "refused"  # another attempt would meet the same answer
    LOST = "lost"
    ENDED = "ended"  # closed by the peer in good order
    WAITED = "waited"
    SPENT = "spent"


class LinkAction(enum.StrEnum):
    """What is to be done."""

    CONNECT = "connect"
    SERVE = "serve"
    WAIT = "wait"
    GIVE_UP = "give_up"


_S, _E, _A = LinkState, LinkEvent, LinkAction
_TABLE: dict[tuple[LinkState, LinkEvent], tuple[LinkState, LinkAction]] = {
    (_S.DOWN, _E.WANTED): (_S.CONNECTING, _A.CONNECT),
    (_S.CONNECTING, _E.OPENED): (_S.OPEN, _A.SERVE),
    (_S.CONNECTING, _E.FAILED): (_S.WAITING, _A.WAIT),
    (_S.CONNECTING, _E.REFUSED): (_S.DOWN, _A.GIVE_UP),
    (_S.OPEN, _E.LOST): (_S.WAITING, _A.WAIT),
    (_S.OPEN, _E.ENDED): (_S.DOWN, _A.GIVE_UP),
    (_S.WAITING, _E.WAITED): (_S.CONNECTING, _A.CONNECT),
    (_S.WAITING, _E.SPENT): (_S.DOWN, _A.GIVE_UP),
}


class Link(NamedTuple):
    """The connection as a value; `attempt` counts the waits since it was last open, 0 before it ever was."""

    state: LinkState = LinkState.DOWN
    attempt: int = 0
    saving: bool = False

    def step(self, event: LinkEvent) -> tuple[Link, LinkAction]:
        """What follows from `event`. Raises KeyError for one that cannot happen in this state."""
        state, action = _TABLE[self.state, event]
        if state is LinkState.OPEN:
            return Link(state, 0, True), action
        if state is LinkState.DOWN or (state is LinkState.WAITING and not self.saving):
            return Link(), LinkAction.GIVE_UP
        return Link(state, self.attempt + (state is LinkState.WAITING), self.saving), action
