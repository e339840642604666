"""The way down, in named steps: whoever can still produce an outcome goes before those who write it down."""

from __future__ import annotations

import logging
from typing import NamedTuple

from empd.lifecycle import ChildKind
from empd.supervisor.restart import Event, Goal
from empd.supervisor.warden import Warden

_log = logging.getLogger("empd.supervisor")


class StopStep(NamedTuple):
    """One step; each child's own limits in the restart table bound it."""

    name: str
    kinds: frozenset[ChildKind]
    event: Event


STOP_STEPS = (
    StopStep("draining workers", frozenset({ChildKind.WORKER}), Event.DRAIN),
    StopStep(
        "stopping servers, web and telemetry",
        frozenset({ChildKind.SERVER, ChildKind.WEB, ChildKind.TELEMETRY}),
        Event.STOP,
    ),
    StopStep("stopping the broker", frozenset({ChildKind.BROKER}), Event.STOP),
)


class Stopping:
    """A stop under way. `tick` moves it on; it is over when `tick` says so."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self._left = list(STOP_STEPS)
        self._step: StopStep | None = None

    @property
    def name(self) -> str:
        """What is going on, for the status line."""
        return self._step.name if self._step is not None else "stopping"

    def hurry(self) -> None:
        """No more waiting: every process tree is killed."""
        self._left.clear()
        for member in self._warden.children:
            self._warden.want(member, Goal.DOWN, Event.NOW)

    def tick(self) -> bool:
        """Goes as far as it can without waiting; True when every child is down."""
        while self._is_down(self._step):
            if not self._left:
                return not any(member.is_live for member in self._warden.children)
            self._begin(self._left.pop(0))
        return False

    def _begin(self, step: StopStep) -> None:
        _log.info("%s", step.name)
        self._step = step
        for member in self._warden.children.of(step.kinds):
            self._warden.want(member, Goal.DOWN, step.event)

    def _is_down(self, step: StopStep | None) -> bool:
        return step is None or not any(member.is_live for member in self._warden.children.of(step.kinds))
