"""Disk space held back for the day the disk is full: completions, cancels and trims still commit with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class DiskReserve:
    """A preallocated file of `reserve_bytes`; 0 bytes means that nothing is held back.

    `held_bytes` is what would come free by `release`.
    """

    def __init__(self, path: Path, reserve_bytes: int) -> None:
        self._path = path
        self._bytes = reserve_bytes
        self.held_bytes = 0

    @property
    def is_whole(self) -> bool:
        """True while the reserve is held."""
        return self.held_bytes == self._bytes

    def restore(self) -> bool:
        """Takes the reserve (again). False when there is no room for it; a part is never kept."""
        if self.is_whole:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, self._bytes)
        except OSError as error:
            os.ftruncate(descriptor, 0)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return False
            raise
        finally:
            os.close(descriptor)
        self.held_bytes = self._bytes
        return True

    def release(self) -> bool:
        """Gives the space back to the file system. False when there was none to give."""
        if not self.held_bytes:
            return False
        # Truncated, not unlinked: some file systems need space to unlink.
        os.truncate(self._path, 0)
        self.held_bytes = 0
        return True
