"""Unlinks blobs that no unfinished job refers to any more, after the fact is committed.

Giving the pages of a large file back takes the kernel milliseconds, in which the broker's loop would stand still: a
thread does it. What waits for it and is named again by a new job stays; what it has begun to remove is not there.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from empd.memory.arena import Arena
from empd.payload import BlobRef

CLOSE_TIMEOUT_S = 5.0


class BlobKeeper:
    """The broker's hold on the arena: it removes blobs, and never opens one."""

    def __init__(self, spool_dir: Path, volatile_dir: Path) -> None:
        self._arena = Arena(spool_dir, volatile_dir)
        self._arena.make_directories()
        self._changed = threading.Condition()
        self._waiting: dict[str, None] = {}
        self._removing = ""
        self._closing = False
        self._remover: threading.Thread | None = None

    def missing(self, blobs: list[BlobRef]) -> frozenset[str]:
        """The ids of those that are not there, or not in the size said. The others stay from now on: neither what was
        released before nor a sweep takes them away."""
        with self._changed:
            for blob in blobs:
                self._waiting.pop(blob.id, None)
            removing = self._removing
        return frozenset(blob.id for blob in blobs if blob.id == removing or not self._arena.renew(blob))

    def release(self, released: list[BlobRef]) -> None:
        """Has the blobs removed. Open maps of them stay valid."""
        if not released:
            return
        with self._changed:
            self._waiting.update(dict.fromkeys(blob.id for blob in released))
            self._changed.notify()
        if self._remover is None:
            self._remover = threading.Thread(target=self._remove, name="blobs", daemon=True)
            self._remover.start()

    def _remove(self) -> None:
        while True:
            with self._changed:
                self._removing = ""
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._removing = next(iter(self._waiting))
                del self._waiting[self._removing]
            # What cannot be removed now is a leftover, which is swept later.
            with contextlib.suppress(OSError):
                self._arena.remove(self._removing)

    def close(self) -> None:
        """The daemon ends: removes what was released, then takes the volatile directory away, unless something in it is
        still wanted."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._remover is not None:
            self._remover.join(CLOSE_TIMEOUT_S)
        with contextlib.suppress(OSError):
            self._arena.volatile_dir.rmdir()
