"""A child's last words: one bounded file for each generation, written by the child, by its fault handler, and by
py-spy when the hang ladder runs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Set
from pathlib import Path
from typing import BinaryIO, TextIO

from empd import lines
from empd.lifecycle import evidence_path

_log = logging.getLogger("empd.supervisor")
FILES_KEPT = 200
STDERR_BYTES_MAX = 64 << 10


def open_for(runtime_dir: Path, generation: int) -> int:
    """A descriptor of the new file of this generation; whoever writes, appends. Without room for one: of nothing."""
    path = evidence_path(runtime_dir, generation)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # A child without evidence is better than none.
        _log.warning("%s cannot be written: %s", path, error)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def drop_empty(runtime_dir: Path, generation: int) -> None:
    """Deletes the file of a child that died without a word."""
    path = evidence_path(runtime_dir, generation)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == 0:
            path.unlink()


def sweep(runtime_dir: Path, living: Set[int] = frozenset(), keep: int = FILES_KEPT) -> int:
    """Deletes all but the `keep` newest files and those of `living` generations; returns how many went."""
    folder = runtime_dir / "evidence"
    spared = {evidence_path(runtime_dir, generation).name for generation in living}
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if entry.name not in spared:
                found.append((entry.stat().st_mtime_ns, entry.path))
    doomed = sorted(found)[: max(0, len(found) - keep)]
    for _, path in doomed:
        Path(path).unlink(missing_ok=True)
    return len(doomed)


class Tee:
    """stderr of a child: everything goes to the daemon's stderr, and the tail of it to the evidence as well.

    The evidence is cut to its newer half whenever `bytes_max` is passed. Writes of native code bypass this object and
    reach only the daemon's stderr.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: TextIO, fd: int, bytes_max: int = STDERR_BYTES_MAX) -> None:
        self._stream = stream
        self._fd = fd
        self._bytes_max = bytes_max

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, self.errors)
        try:
            if os.fstat(self._fd).st_size + len(data) > self._bytes_max:
                self._cut()
            os.write(self._fd, data[-self._bytes_max // 2 :])
        except OSError:
            # A full tmpfs must not turn a log line into a crash.
            pass
        return self._stream.write(text)

    def _cut(self) -> None:
        keep = self._bytes_max // 2
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, keep, max(0, size - keep))
        os.ftruncate(self._fd, 0)
        os.write(self._fd, tail)

    @property
    def buffer(self) -> BinaryIO:
        """For writers of bytes; they bypass the evidence."""
        return self._stream.buffer

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True


def tee_stderr(fd: int) -> None:
    """In a child: what Python prints goes out in whole lines, and its stderr to the evidence too."""
    lines.keep_whole()
    sys.stderr = Tee(sys.stderr, fd)
