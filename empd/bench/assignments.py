"""Claims as the daemon journals them, seen through its event stream."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from empd.bench.running import BenchError, Running
from empd.client import Client
from empd.errors import EmpdError
from empd.queue import rows
from empd.queue.rows import Kind
from empd.wire.frames import Reset


class Assignment(NamedTuple):
    """One claim. `at_ns`: when the broker decided it; `seen_ns`: when it arrived here. Both wall time."""

    worker: str
    generation: int
    boot: int
    ids: list[int]
    at_ns: int
    seen_ns: int


class Assignments:
    """The claims of a daemon from now on, read by a client and a thread of their own."""

    def __init__(self, daemon: Running) -> None:
        self._daemon = daemon
        self._seen: queue.SimpleQueue[Assignment] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._client: Client = self._daemon.client()
        self._from_seq = self._client.status()["journal"]["last_seq"] + 1
        self._thread = threading.Thread(target=self._read, name="assignments", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._thread.join()

    def _read(self) -> None:
        try:
            for frame in self._client.subscribe("bench", self._from_seq, kinds=[Kind.ASSIGNED]):
                seen_ns = time.time_ns()
                for _, at_ns, kind, _, body in () if isinstance(frame, Reset) else frame.rows:
                    fact = rows.decode_body(kind, body)
                    boot = fact.first_epoch >> 32
                    self._seen.put(Assignment(fact.worker, fact.generation, boot, fact.ids, at_ns, seen_ns))
        except EmpdError:
            return  # the client was closed, which is how this thread is ended

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
