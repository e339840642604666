"""Who has gone silent: READY children whose heartbeat on the board is older than their kind allows."""

from __future__ import annotations

from empd.clock import NS_PER_S, seconds_to_ns
from empd.memory.board import Board
from empd.supervisor.children import Children, Member
from empd.supervisor.kinds import Kinds
from empd.supervisor.restart import State

INTERVAL_NS = NS_PER_S


class HeartbeatWatch:
    """Looks at the board once per `INTERVAL_NS`."""

    def __init__(self, board: Board, kinds: Kinds) -> None:
        self._board = board
        self._kinds = kinds
        self._looked_ns = 0
        self._fair_since_ns = 0

    def silent(self, children: Children, now_ns: int) -> list[Member]:
        """The children that hang, as far as this can tell.

        When this process itself was held up (a stopped machine, a debugger), so were the others: everybody's time
        starts anew.
        """
        if now_ns - self._looked_ns > 3 * INTERVAL_NS:
            self._fair_since_ns = now_ns
        self._looked_ns = now_ns
        return [member for member in children if self._is_silent(member, now_ns)]

    def _is_silent(self, member: Member, now_ns: int) -> bool:
        kind = self._kinds[member.spec.kind]
        if member.life.state not in (State.READY, State.RECYCLING) or not kind.heartbeat_s:
            return False
        activity = self._board.read(member.slot).own_activity
        if kind.may_hold_jobs and activity is not None and (activity.job_id or activity.jobs_running):
            return False
        beat_ns = activity.heartbeat_mono_ns if activity is not None else 0
        last_ns = max(beat_ns, member.ready_ns, self._fair_since_ns)
        return now_ns - last_ns > seconds_to_ns(kind.heartbeat_s)
