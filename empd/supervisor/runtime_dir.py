"""The directories that one daemon owns while it runs: locks, pid file, leftovers of an earlier life."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from empd.errors import ConfigError, StateLocked


class Lock:
    """An exclusive lock on a directory, held until `release` or the end of this process.

    It lies in `directory/lock`, which names the holder's pid. Raises StateLocked when another process holds it.
    """

    def __init__(self, directory: Path, what: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StateLocked(
                f"{what} {directory} belongs to a running empd (pid {holder}); stop that one, or use another {what}"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Another daemon may have the directory now."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def prepare(runtime_dir: Path) -> None:
    """Makes the runtime directory, writes `pid`, removes sockets that nobody serves any more.

    To be called with the lock held. Raises ConfigError when the directory is another user's or open to all.
    """
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = runtime_dir.stat()
    if found.st_uid != os.geteuid():
        raise ConfigError([f"runtime_dir: {runtime_dir} belongs to user {found.st_uid}; use a directory of your own"])
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError([f"runtime_dir: {runtime_dir} is writable for everybody; chmod it to 0700"])
    remove_sockets(runtime_dir)
    (runtime_dir / "evidence").mkdir(mode=0o700, exist_ok=True)
    (runtime_dir / "pid").write_text(f"{os.getpid()}\n")


def remove_sockets(runtime_dir: Path) -> None:
    """Unlinks every socket in the directory: only this daemon's children make any there."""
    for entry in os.scandir(runtime_dir):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)


def leave(runtime_dir: Path) -> None:
    """What must not outlive the daemon is removed; evidence stays."""
    remove_sockets(runtime_dir)
    for name in ("pid", "http", "supervisor.json"):
        (runtime_dir / name).unlink(missing_ok=True)
