"""What a server writes, kept in two files of half the room each: the newer one, and `.1` with what came before."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_READ_BYTES = 1 << 16


class Output(threading.Thread):
    """Takes a server's pipe empty, in a thread: a disk that is stuck or full must
    hold up neither the keeper nor, as long as it can be helped, the server. What cannot be written is dropped."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._half_bytes = bytes_max // 2
        self._fd = -1
        self._size = 0
        self._lock = threading.Lock()
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)

    def run(self) -> None:
        """As long as this process lives, which has the other end too."""
        while data := os.read(self.read_fd, min(_READ_BYTES, self._half_bytes)):
            self.write(data)

    def begin(self) -> None:
        """The server has the other end: from now on its output is taken."""
        self.start()

    def note(self, text: str) -> None:
        """A line of the daemon's own among the server's."""
        self.write(f"--- empd {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}: {text}\n".encode())

    def write(self, data: bytes) -> None:
        """Appends; never raises."""
        data = data[-self._half_bytes :]
        with self._lock, contextlib.suppress(OSError):
            if self._fd < 0:
                self._open()
            if self._size + len(data) > self._half_bytes:
                os.close(self._fd)
                self._fd = -1
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._open()
            self._size += os.write(self._fd, data)

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size
