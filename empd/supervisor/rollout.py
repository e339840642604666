"""A new configuration without a gap: one child after the other is replaced, the next when the last one serves."""

from __future__ import annotations

import collections
import logging

import msgspec

from empd.lifecycle import ChildKind, Control, Notice
from empd.mapping import Mapping
from empd.supervisor.children import Member, Spec
from empd.supervisor.plan import Plan
from empd.supervisor.restart import Event, Goal, State
from empd.supervisor.warden import Warden

_log = logging.getLogger("empd.supervisor")

# The broker first: it has to know the new mapping before a worker speaks of it. Servers before the workers that use
# them: a worker of old lets go of a server that drains, one of the new configuration wants the new server.
ORDER = (ChildKind.BROKER, ChildKind.SERVER, ChildKind.WORKER, ChildKind.TELEMETRY, ChildKind.WEB)
_DRAINED = frozenset({ChildKind.WORKER, ChildKind.SERVER})


def only_api_config_differs(old: Plan, new: Plan) -> bool:
    """Whether connectors can take the new configuration over where they are: models stay loaded, jobs go on."""
    if (old.settings, old.devices, old.specs) != (new.settings, new.devices, new.specs):
        return False
    before, after = (_without_api_config(each.mapping) for each in (old, new))
    return before == after and old.mapping != new.mapping


def _without_api_config(mapping: Mapping) -> Mapping:
    services = {name: msgspec.structs.replace(each, api_config={}) for name, each in mapping.services.items()}
    return msgspec.structs.replace(mapping, services=services)


class Rollout:
    """A reload under way. Making one puts `plan` in force; `tick` moves it on."""

    def __init__(self, warden: Warden, plan: Plan) -> None:
        self._warden = warden
        in_place = only_api_config_differs(warden.plan, plan)
        self._wanted = {spec.name: spec for spec in plan.specs}
        warden.plan = plan
        gone = [each.spec for each in warden.children if each.spec.name not in self._wanted]
        changed = [spec for spec in plan.specs if not self._may_stay(spec)]
        specs = sorted((*gone, *changed), key=lambda spec: ORDER.index(spec.kind))
        self._left = collections.deque(specs)
        self._now: Member | None = None
        if in_place:
            self._left.clear()
            for member in warden.children:
                if member.is_live and member.spec.kind in (ChildKind.WORKER, ChildKind.WEB):
                    warden.tell(member, Control(Notice.RELOAD, member.spec.kind, member.slot))

    @property
    def name(self) -> str:
        """What is going on, for the status line."""
        return f"reloading {self._now.spec.name if self._now else ''}, {len(self._left)} to go"

    def tick(self) -> bool:
        """Goes as far as it can without waiting; True when all children run on the new configuration."""
        while self._now is None or self._is_settled(self._now):
            if self._now is not None and self._now.spec.name not in self._wanted:
                self._warden.forget(self._now)
            self._now = None
            if not self._left:
                return True
            self._now = self._begin(self._left.popleft())
        return False

    def _may_stay(self, spec: Spec) -> bool:
        """A server takes minutes to start: one whose entry did not change runs on."""
        member = self._warden.children.get(spec.name)
        return spec.kind is ChildKind.SERVER and member is not None and member.is_live and member.spec == spec

    def _begin(self, spec: Spec) -> Member:
        warden = self._warden
        member = warden.children.get(spec.name)
        leave = Event.DRAIN if spec.kind in _DRAINED else Event.STOP
        if member is None:
            member = warden.children.add(spec)
            warden.want(member, Goal.UP, Event.START)
        elif spec.name not in self._wanted:
            warden.want(member, Goal.DOWN, leave)
        else:
            member.spec = spec
            # One that has no process right now is tried at once: the new configuration may be the cure.
            warden.want(member, Goal.UP, leave if member.is_live else Event.START)
        return member

    def _is_settled(self, member: Member) -> bool:
        """Replaced and serving; or down, or failing, in which case the restart table has it in hand."""
        if member.spec.name not in self._wanted:
            return not member.is_live
        if not member.is_live:
            _log.error("%s does not start with the new configuration", member.spec.name)
            return True
        # The old one left this state the moment it was told to go.
        return member.life.state is State.READY
