"""Claims as the daemon journals them, seen through its event stream."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import NamedTuple

from empd.bench.events import Events
from empd.bench.running import BenchError, Running
from empd.queue import rows
from empd.queue.rows import Kind
from empd.wire.frames import Reset, Rows


class Assignment(NamedTuple):
    """One claim. `at_ns`: when the broker decided it; `seen_ns`: when it arrived here. Both wall time."""

    worker: str
    generation: int
    boot: int
    ids: list[int]
    at_ns: int
    seen_ns: int


class Assignments(Events):
    """The claims of a daemon from now on."""

    kinds = (Kind.ASSIGNED,)

    def __init__(self, daemon: Running) -> None:
        super().__init__(daemon)
        self._seen: queue.SimpleQueue[Assignment] = queue.SimpleQueue()

    def take(self, frame: Rows | Reset) -> None:
        """Keeps the claims for `next`; those that were trimmed are passed over."""
        seen_ns = time.time_ns()
        for _, at_ns, kind, _, body in () if isinstance(frame, Reset) else frame.rows:
            fact = rows.decode_body(kind, body)
            boot = fact.first_epoch >> 32
            self._seen.put(Assignment(fact.worker, fact.generation, boot, fact.ids, at_ns, seen_ns))

    def next(self, fits: Callable[[Assignment], bool], what: str, limit_s: float) -> Assignment:
        """The next claim that fits; those before it are dropped. Raises BenchError at the limit."""
        deadline_s = time.monotonic() + limit_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                found = self._seen.get(timeout=left_s)
            except queue.Empty:
                break
            if fits(found):
                return found
        raise BenchError(f"waited {limit_s:g} s in vain for {what}")

    def of_later_boot(self, boot: int, what: str, limit_s: float) -> Assignment:
        """The next claim that a successor of the broker with this boot number decided. Raises BenchError."""
        return self.next(lambda one: one.boot > boot, what, limit_s)
