"""The worker's side of an internal service's server: which generation of it may be used, as the board shows it.

A lease (this worker's mark on the board, see `empd.server.process`) is taken while the server is READY, and given
back when the last job there has ended: a server that is to be replaced waits for that. A server's death is seen at
once, through a pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from empd.internal import EXIT_NOT_STARTED, ServerInstance
from empd.lifecycle import ChildKind
from empd.memory.board import Activity, Board, Identity, SlotState

EVIDENCE_BYTES_MAX = 4096
KEEPER_S_MAX = 2.0
DEAD_S_MAX = 5.0
"""A connector that has not noticed so long after its server's death is told: what it waits for cannot come any more."""

_LOOK_S = 0.02


class Seat(NamedTuple):
    """Where this worker stands: the board, how its lease is shown there, and where servers' output lies."""

    board: Board
    show_lease: Callable[[int], None]
    log_path: Path


class Lease:
    """One generation of a server while this worker uses it."""

    def __init__(self, slot: int, generation: int, pidfd: int) -> None:
        self.slot = slot
        self.generation = generation
        self.pidfd = pidfd
        self.dead = asyncio.Event()
        self.told_to_stop = False  # its end, should it come, is not its own doing
        self.asked = False  # a successor has been asked for
        self.jobs = 0
        self.well_s = 0.0  # when the connector last found it well; 0: never
        self.limits: set[asyncio.Timeout] = set()  # of the jobs that run there


class ServerView:
    """One server. While none may be used, `reason` says why, and a `lease` may still be held for what runs there.

    `on_death()` is called when the server of the lease has died.
    """

    def __init__(self, instance: ServerInstance, seat: Seat, on_death: Callable[[], None]) -> None:
        self.instance = instance
        self.lease: Lease | None = None
        self.reason = "starting"
        self._seat = seat
        self._on_death = on_death
        self._slot = 0

    def look(self, jobs: int) -> None:
        """Follows the board. `jobs` run on the server now."""
        slot, identity, activity = self._find()
        lease = self.lease
        is_same = lease is None or (identity is not None and identity.generation == lease.generation)
        is_ready = identity is not None and identity.state is SlotState.READY
        if lease is not None and is_same and identity is not None:
            lease.told_to_stop = lease.told_to_stop or identity.state is SlotState.STOPPING
        self.reason = self._reason(identity, is_same)
        # Where the board still calls it READY, letting go would only lead to taking it again.
        if lease is not None and self.reason and not jobs and not (is_same and is_ready):
            self.close()
        if self.lease is None and is_ready and identity is not None:
            self._take(slot, identity, activity)

    def _reason(self, identity: Identity | None, is_same: bool) -> str:
        lease, name = self.lease, self.instance.name
        if identity is None:
            return f"its server {name} is not running"
        if identity.state is not SlotState.READY:
            return f"its server {name} is {_in_words(identity)}"
        if lease is not None and (lease.dead.is_set() or not is_same):
            return f"its server {name} has ended"
        if lease is not None and lease.asked:
            return f"its server {name} is being replaced"
        return ""

    def close(self) -> None:
        """Gives the lease back."""
        lease, self.lease = self.lease, None
        if lease is not None:
            asyncio.get_running_loop().remove_reader(lease.pidfd)
            os.close(lease.pidfd)
            self._seat.show_lease(0)

    async def last_words(self, lease: Lease) -> str:
        """The end of what a server that died has written; all of it is in its log when its keeper has ended too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEEPER_S_MAX):
                while self._is_ready(lease):
                    await asyncio.sleep(_LOOK_S)
        try:
            with self._seat.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - EVIDENCE_BYTES_MAX))
                return log.read(EVIDENCE_BYTES_MAX).decode(errors="replace")
        except OSError:
            return ""

    def _take(self, slot: int, identity: Identity, activity: Activity | None) -> None:
        instance, loop = self.instance, asyncio.get_running_loop()
        pid, port = activity.spares[:2] if activity is not None else (0, 0)
        if port != instance.port:
            # A reload has moved it, and will replace this worker next.
            self.reason = f"its server {instance.name} listens on port {port}, not {instance.port}"
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            self.reason = f"its server {instance.name} has ended"
            return
        lease = self.lease = Lease(slot, identity.generation, pidfd)
        loop.add_reader(pidfd, self._died, lease)
        self._seat.show_lease(lease.generation)
        self.reason = ""
        if not self._is_ready(lease):
            # Asked to leave between the look and the lease: it may not have seen the lease.
            self.reason = f"its server {instance.name} is being replaced"
            self.close()

    def _died(self, lease: Lease) -> None:
        asyncio.get_running_loop().remove_reader(lease.pidfd)
        _, identity, _ = self._find()
        if identity is not None and identity.generation == lease.generation:
            lease.told_to_stop = lease.told_to_stop or identity.state is SlotState.STOPPING
        lease.dead.set()
        end_s = asyncio.get_running_loop().time() + DEAD_S_MAX
        for limit in lease.limits:
            limit.reschedule(end_s)
        self.reason = f"its server {self.instance.name} has ended"
        self._on_death()

    def _is_ready(self, lease: Lease) -> bool:
        _, identity, _ = self._find()
        return identity is not None and identity.generation == lease.generation and identity.state is SlotState.READY

    def _find(self) -> tuple[int, Identity | None, Activity | None]:
        board = self._seat.board
        for slot in (self._slot, *range(board.slots)):  # a server that is replaced keeps its slot
            view = board.read(slot)
            identity = view.identity
            if identity is not None and identity.kind is ChildKind.SERVER and identity.name == self.instance.name:
                self._slot = slot
                return slot, identity, view.own_activity
        return -1, None, None


def _in_words(identity: Identity) -> str:
    """`starting (restarts: 2, last exit: crashed)`."""
    text = identity.state.name.lower().replace("_", " ")
    if identity.last_exit is not None:
        status = identity.last_wait_status
        is_told = os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_NOT_STARTED
        how = "it could not be started, its log tells why" if is_told else identity.last_exit.name.lower()
        text += f" (restarts: {identity.restarts}, last exit: {how})"
    return text
