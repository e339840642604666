"""Who has gone silent: READY children whose heartbeat on the board is older than their kind allows, and children that
somebody stopped while they start: loading a model may take long, but not without running."""

from __future__ import annotations

from pathlib import Path

from empd.clock import NS_PER_S, seconds_to_ns
from empd.memory.board import Board
from empd.supervisor.children import Children, Member
from empd.supervisor.kinds import Kinds
from empd.supervisor.restart import State

INTERVAL_NS = NS_PER_S


_STARTING = (State.STARTING, State.HALF_OPEN)


class HeartbeatWatch:
    """Looks at the board once per `INTERVAL_NS`."""

    def __init__(self, board: Board, kinds: Kinds) -> None:
        self._board = board
        self._kinds = kinds
        self._looked_ns = 0
        self._fair_since_ns = 0
        self._stopped_ns: dict[int, int] = {}  # generation → since when it is seen stopped

    def silent(self, children: Children, now_ns: int) -> list[Member]:
        """The children that hang, as far as this can tell.

        When this process itself was held up (a stopped machine, a debugger), so were the others: everybody's time
        starts anew.
        """
        if now_ns - self._looked_ns > 3 * INTERVAL_NS:
            self._fair_since_ns = now_ns
        self._looked_ns = now_ns
        silent = [member for member in children if self._is_silent(member, now_ns)]
        return silent + self._stopped(children, now_ns)

    def _stopped(self, children: Children, now_ns: int) -> list[Member]:
        """Children that have been stopped for as long as one of their kind may be silent, and never got READY."""
        starting = [member for member in children if member.life.state in _STARTING and member.pid]
        stopped = [member for member in starting if _is_stopped(member.pid)]
        self._stopped_ns = {each.generation: self._stopped_ns.get(each.generation, now_ns) for each in stopped}
        return [
            member
            for member in stopped
            if 0
            < seconds_to_ns(self._kinds[member.spec.kind].heartbeat_s)
            < now_ns - max(self._stopped_ns[member.generation], self._fair_since_ns)
        ]

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


def _is_stopped(pid: int) -> bool:
    """The process does not run because of a signal (SIGSTOP and its like)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] == "T"
