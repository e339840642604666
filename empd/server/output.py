"""What a server writes, kept in two files of half the room each: the newer one, and `.1` with what came before."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from pathlib import Path

FINISH_S_MAX = 1.0
NOTES_MAX = 100
_READ_BYTES = 1 << 16


class Output(threading.Thread):
    """Takes a server's pipe empty, in a thread that alone touches the disk: one that is stuck or full must
    hold up neither the keeper nor, as long as it can be helped, the server. What cannot be written is dropped.

    Lines stay whole: a note waits for the end of the server's line, and so does the change of files.
    """

    def __init__(self, path: Path, bytes_max: int) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._half_bytes = bytes_max // 2
        self._read_bytes = min(_READ_BYTES, self._half_bytes // 4)
        self._fd = -1
        self._size = 0
        self._is_in_line = False
        self._notes: deque[bytes] = deque(maxlen=NOTES_MAX)
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        self._noted_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run(self) -> None:
        """Until nobody has the other end any more."""
        poll = select.poll()
        poll.register(self._noted_fd, select.POLLIN)
        poll.register(self.read_fd, select.POLLIN)
        data: bytes | None = None
        while data != b"":
            ready = [fd for fd, _ in poll.poll()]
            if self._noted_fd in ready:
                os.eventfd_read(self._noted_fd)
            if self.read_fd in ready:
                data = os.read(self.read_fd, self._read_bytes)
                self.write(data)
            if not self._is_in_line or data == b"":
                self._write_notes()

    def begin(self) -> None:
        """The server, if there is one, has the other end: from now on its output is taken."""
        self.start()

    def finish(self) -> None:
        """The server has ended: returns when all that it wrote is kept, or after `FINISH_S_MAX`."""
        os.close(self.write_fd)
        self.join(FINISH_S_MAX)

    def note(self, text: str) -> None:
        """A line of the daemon's own among the server's."""
        self._notes.append(f"--- empd {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}: {text}\n".encode())
        os.eventfd_write(self._noted_fd, 1)

    def _write_notes(self) -> None:
        if self._notes and self._is_in_line:
            self.write(b"\n")
        while self._notes:
            self.write(self._notes.popleft())

    def write(self, data: bytes) -> None:
        """Appends; never raises."""
        data = data[-self._half_bytes :]
        was_in_line = self._is_in_line
        if data:
            self._is_in_line = not data.endswith(b"\n")
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._open()
            if self._size + len(data) > self._half_bytes - self._read_bytes:
                data = self._make_room(data, was_in_line)
            self._size += os.write(self._fd, data)

    def _make_room(self, data: bytes, is_in_line: bool) -> bytes:
        """Changes files at the end of a line, unless that line is longer than a file may become; what is left of
        `data`."""
        end = data.find(b"\n") + 1
        if is_in_line and self._size + (end or len(data)) <= self._half_bytes:
            if not end:
                return data
            os.write(self._fd, data[:end])
            data = data[end:]
        self._change_files()
        return data

    def _change_files(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._open()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size
