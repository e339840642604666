"""Endpoints that were registered at run time: `PUT /v1/services/{service}/endpoints/{id}`, good for a TTL.

They live in one small file of the runtime directory (`endpoints.json`), replaced whole by the web process and read by
workers when it is another one. So they outlive any process of the daemon, and none has to ask another. Whoever
registers repeats it within the TTL; what is not repeated is forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from empd.clock import NS_PER_S, boot_id
from empd.device import Device

FILE = "endpoints.json"
TTL_S = 60.0
ENTRIES_MAX = 1_000
LOOK_NS = NS_PER_S // 4
"""A worker looks at the file no more often than this."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint. `gpu` (index or UUID) gives it to that GPU's workers; without it all workers share in it."""

    service: str
    id: str
    url: str
    protocol: Literal["http", "websocket", "grpc"] = "http"
    gpu: int | str | None = None
    health_path: str = ""
    seen_mono_ns: int = 0
    expires_mono_ns: int = 0


class _Book(msgspec.Struct):
    """The file. Monotonic times hold within one boot only."""

    boot: str
    entries: list[Registration]


class Registrations:
    """The writer's side; one process has it, in as many threads and objects as it likes."""

    _changing: ClassVar = threading.Lock()
    """The file is read, changed and replaced: what came in between would be lost."""

    def __init__(self, runtime_dir: Path, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._path = runtime_dir / FILE
        self._now_ns = now_ns

    def living(self) -> list[Registration]:
        """What has not expired."""
        now_ns = self._now_ns()
        return [entry for entry in _read(self._path) if entry.expires_mono_ns > now_ns]

    def put(self, entry: Registration, ttl_s: float) -> bool:
        """Takes an endpoint, or a sign of life of one. False: there are too many. Raises OSError."""
        now_ns = self._now_ns()
        until_ns = now_ns + int(ttl_s * NS_PER_S)
        with self._changing:
            kept = [each for each in self.living() if (each.service, each.id) != (entry.service, entry.id)]
            if len(kept) >= ENTRIES_MAX:
                return False
            self._write([*kept, msgspec.structs.replace(entry, seen_mono_ns=now_ns, expires_mono_ns=until_ns)])
        return True

    def remove(self, service: str, endpoint_id: str) -> bool:
        """Forgets one; False when there was none. Raises OSError."""
        with self._changing:
            entries = self.living()
            kept = [each for each in entries if (each.service, each.id) != (service, endpoint_id)]
            if len(kept) < len(entries):
                self._write(kept)
        return len(kept) < len(entries)

    def _write(self, entries: list[Registration]) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(_Book(boot_id(), entries)))
        os.replace(part, self._path)


class Registered:
    """The reader's side, for one service of one worker: called for its URL, which is empty when there is none."""

    def __init__(
        self,
        runtime_dir: Path,
        service: str,
        worker: str,
        device: Device | None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._path = runtime_dir / FILE
        self._service = service
        self._worker = worker
        self._gpus = () if device is None else (device.index, device.uuid)
        self._now_ns = now_ns
        self._looked_ns = -LOOK_NS
        self._stamp: tuple[int, int] | None = None
        self._mine: list[Registration] = []

    def __call__(self) -> str:
        """The URL now."""
        now_ns = self._now_ns()
        if now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            self._look()
        return next((entry.url for entry in self._mine if entry.expires_mono_ns > now_ns), "")

    def _look(self) -> None:
        stamp = None
        with contextlib.suppress(OSError):
            found = os.stat(self._path)
            stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self._stamp:
            self._stamp = stamp
            ours = [entry for entry in _read(self._path) if entry.service == self._service]
            usable = [entry for entry in ours if entry.gpu is None or entry.gpu in self._gpus]
            self._mine = sorted(usable, key=self._rank)

    def _rank(self, entry: Registration) -> tuple[bool, bytes]:
        """Its own GPU's first; the others spread over the workers, each worker keeping to its own."""
        share = hashlib.blake2b(f"{self._worker} {entry.id}".encode(), digest_size=8).digest()
        return entry.gpu is None, share


def _read(path: Path) -> list[Registration]:
    """What the file holds; nothing when there is none, or one of another boot."""
    try:
        book = msgspec.json.decode(path.read_bytes(), type=_Book)
    except (OSError, msgspec.DecodeError):
        return []
    return book.entries if book.boot == boot_id() else []
