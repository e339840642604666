"""Unlinks blobs that no unfinished job refers to any more, after the fact is committed."""

from __future__ import annotations

import contextlib
from pathlib import Path

from empd.memory.arena import Arena
from empd.payload import BlobRef


class BlobKeeper:
    """The broker's hold on the arena: it removes blobs, and never opens one."""

    def __init__(self, spool_dir: Path, volatile_dir: Path) -> None:
        self._arena = Arena(spool_dir, volatile_dir)
        self._arena.make_directories()

    def missing(self, blobs: list[BlobRef]) -> frozenset[str]:
        """The ids of those that are not there, or not in the size said."""
        return frozenset(blob.id for blob in blobs if not self._arena.exists(blob))

    def release(self, released: list[BlobRef]) -> None:
        """Removes the blobs. Open maps of them stay valid."""
        for blob in released:
            self._arena.remove(blob.id)

    def close(self) -> None:
        """The daemon ends: takes the volatile directory away, unless something in it is still wanted."""
        with contextlib.suppress(OSError):
            self._arena.volatile_dir.rmdir()
