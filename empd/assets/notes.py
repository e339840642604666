"""Which attempts have begun to save, so that what one leaves that dies is found once its job has ended without it.

    root/.attempts/<job>-<epoch>    a note: whose assets, and under which names. Its writer holds it (flock) for life

A note is made before an attempt's first asset, and goes when the attempt's outcome is durable or its assets are gone.
One that nobody holds is of an attempt that died. When its job has ended, what it tells of is removed, unless that very
attempt's result counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from empd import clock
from empd.assets.naming import Mark, Naming
from empd.disk import sync_directory
from empd.job import format_id

NOTES = ".attempts"
_BEGUN = ".part"
_BEGUN_KEPT_S = 60.0


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known to find an attempt's assets. `attempt` counts the job's, `place` is the store."""

    service: str
    place: str
    instance: str
    job: int
    epoch: int
    attempt: int
    prefix: str
    file_name: str

    @property
    def naming(self) -> Naming:
        """How its assets are called."""
        return Naming(self.prefix, Mark(self.instance, self.job, self.epoch), self.file_name)


class Held:
    """A note, and the lock on it: nobody else has it until `drop` or `release`, or the end of this process."""

    def __init__(self, path: Path, fd: int, note: Note) -> None:
        self.note = note
        self.path = path
        self._fd = fd

    @property
    def age_s(self) -> float:
        """Since it was made."""
        return _age_s(os.fstat(self._fd))

    def drop(self) -> None:
        """There is nothing to be found any more."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leaves it to whoever looks after what dead attempts left. Twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Who was stopped while it looked for notes must not keep them from the next look.
        self.release()


def hold(root: Path, note: Note) -> Held:
    """Makes a note, durable when this returns. Raises OSError."""
    folder = root / NOTES
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{format_id(note.job)}-{note.epoch:x}"
    begun = path.with_name(path.name + _BEGUN)
    # Locked before it has its name: a note that can be seen is held, or its writer is dead.
    fd = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, msgspec.json.encode(note))
        os.fsync(fd)
        os.rename(begun, path)
        sync_directory(folder)
    except BaseException:  # raised again; nobody holds what has no note
        os.close(fd)
        raise
    return Held(path, fd, note)


def left(root: Path) -> Iterator[Held]:
    """The notes of dead attempts, each held by the caller from then on. Raises OSError."""
    try:
        names = os.listdir(root / NOTES)
    except FileNotFoundError:
        return
    for name in names:
        found = _take(root / NOTES / name)
        if found is not None:
            yield found


def _take(path: Path) -> Held | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        if status.st_nlink and path.name.endswith(_BEGUN):
            # Its writer may be about to lock it.
            if _age_s(status) > _BEGUN_KEPT_S:
                path.unlink(missing_ok=True)
        elif status.st_nlink:
            return Held(path, os.dup(fd), msgspec.json.decode(os.pread(fd, status.st_size, 0), type=Note))
    except BlockingIOError:
        pass  # its attempt lives
    except msgspec.DecodeError:
        path.unlink(missing_ok=True)  # the power went before it was whole, and so before any asset
    finally:
        os.close(fd)
    return None


def _age_s(status: os.stat_result) -> float:
    return clock.now().wall_ns / clock.NS_PER_S - status.st_mtime
