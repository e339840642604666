"""The telemetry process: GPU gauges from NVML onto the board, in a process that may hang and be killed unnoticed.

Life: startup (attach the board, READY) → main_loop (sleep on the control socket until a heartbeat or a reading is
due) → shutdown. It holds no socket but its control socket and no state that anyone would miss.
"""

from __future__ import annotations

import logging
import os
import select

from empd import clock, lifecycle
from empd.lifecycle import Child, ChildKind, Control, Notice
from empd.memory.board import UNKNOWN, Activity, Board, Gauges, GroupWriter
from empd.telemetry.nvml import Flag, NoNvml, Nvml

_log = logging.getLogger("empd.telemetry")


def main(child: Child) -> int:
    """Entered by the supervisor. Returns 0 after a stop or drain that was asked for."""
    process = TelemetryProcess(child)
    try:
        return process.run()
    finally:
        process.close()


class TelemetryProcess:
    """One thread, one poll. `telemetry_interval_s` 0 leaves only the heartbeat."""

    def __init__(self, child: Child) -> None:
        self._control = child.control
        self._kind = child.kind
        self._interval_ns = clock.seconds_to_ns(child.settings.telemetry_interval_s)
        self._heartbeat_ns = clock.seconds_to_ns(child.settings.heartbeat_s)
        self._board = Board.attach(child.board_fd)
        self._activity = self._board.writer(child.slot, Activity)
        self._writers: dict[int, GroupWriter[Gauges]] = {}
        self._nvml: Nvml | None = None
        self._complaint = ""
        self._next_beat_ns = self._next_reading_ns = 0

    def run(self) -> int:
        """Serves until a control record ends it (0), or the supervisor is gone (1)."""
        self._beat(clock.now().mono_ns)
        lifecycle.send(self._control, Control(Notice.READY, self._kind))
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            deadline_ns = self._tick(clock.now().mono_ns)
            wait_ms = max(0, deadline_ns - clock.now().mono_ns) / clock.NS_PER_MS
            if poll.poll(wait_ms + 1):  # rounded up: waking before the deadline would only wait once more
                status = self._obey()
                if status is not None:
                    return status

    def close(self) -> None:
        """Ends the session with NVML and unmaps the board."""
        if self._nvml:
            self._nvml.close()
        self._board.close()

    def _obey(self) -> int | None:
        """The exit status, where the records ask for an end."""
        records = lifecycle.receive(self._control)
        if records is None:
            return 1
        for record in records:
            if record.notice is Notice.DRAIN:
                lifecycle.send(self._control, Control(Notice.DRAINED, self._kind))
            if record.notice in (Notice.DRAIN, Notice.STOP):
                return 0
        return None

    def _tick(self, mono_ns: int) -> int:
        """Does what is due and returns the next deadline."""
        if mono_ns >= self._next_beat_ns:
            self._beat(mono_ns)
        if not self._interval_ns:
            return self._next_beat_ns
        if mono_ns >= self._next_reading_ns:
            self._read_all(mono_ns)
            # Counted from the end: a slow driver is not asked faster to catch up.
            self._next_reading_ns = clock.now().mono_ns + self._interval_ns
        return min(self._next_beat_ns, self._next_reading_ns)

    def _beat(self, mono_ns: int) -> None:
        self._activity.beat(mono_ns)
        self._next_beat_ns = mono_ns + self._heartbeat_ns

    def _read_all(self, mono_ns: int) -> None:
        """Writes the gauges of every slot that is pinned to a GPU; each GPU is read once."""
        slots = self._slots_by_uuid()
        if not slots:
            return
        nvml = self._session()
        if nvml:
            nvml.collect_xids()
        for uuid, pinned in slots.items():
            gauges = nvml.read(uuid, mono_ns) if nvml else Gauges(at_mono_ns=mono_ns, flags=Flag.UNREADABLE)
            servers = [slot for slot in pinned if self._is_server(slot)]
            held = _by_session(nvml.processes(uuid)) if nvml and servers else {}
            for slot in pinned:
                own_bytes = held.get(self._pid(slot), UNKNOWN) if slot in servers else UNKNOWN
                self._writer(slot).write(gauges._replace(processes_memory_bytes=own_bytes))

    def _slots_by_uuid(self) -> dict[str, list[int]]:
        slots: dict[str, list[int]] = {}
        for slot in range(self._board.slots):
            identity = self._board.read(slot).identity
            if identity and identity.device_uuid and not identity.virtual:
                slots.setdefault(identity.device_uuid, []).append(slot)
        return slots

    def _is_server(self, slot: int) -> bool:
        identity = self._board.read(slot).identity
        return identity is not None and identity.kind is ChildKind.SERVER

    def _pid(self, slot: int) -> int:
        identity = self._board.read(slot).identity
        return identity.pid if identity is not None else 0

    def _session(self) -> Nvml | None:
        """The session with NVML, opened anew where the last one is over; None while the library does not work."""
        if self._nvml and self._nvml.is_over:
            self._nvml.close()
            self._nvml = None
        if self._nvml is None:
            try:
                self._nvml = Nvml()
                self._complaint = ""
            except NoNvml as error:
                if str(error) != self._complaint:  # said once, not at every interval
                    self._complaint = str(error)
                    _log.warning("%s", error)
        return self._nvml

    def _writer(self, slot: int) -> GroupWriter[Gauges]:
        if slot not in self._writers:
            self._writers[slot] = self._board.writer(slot, Gauges)
        return self._writers[slot]


def _by_session(processes: dict[int, int]) -> dict[int, int]:
    """Session → bytes: a child leads its session, and what it has started is in it."""
    found: dict[int, int] = {}
    for pid, size_bytes in processes.items():
        try:
            session = os.getsid(pid)
        except (ProcessLookupError, PermissionError):
            continue
        if size_bytes != UNKNOWN:
            found[session] = found.get(session, 0) + size_bytes
    return found
