"""The committed high-water mark, kept outside the database so that a cut journal is noticed.

Two records of 24 bytes are written alternately, so that a write that is torn by a crash leaves the other one:

    offset  0         8           12     16     18          19       20
           last_seq  instance32  boot32 turn  durability  version  crc32 (of the 20 bytes before it)

The newest is the valid one whose `turn` follows the other's (modulo 2^16). It is written after each commit and
never synced: a power cut may leave it behind the journal, never ahead of one that was synced.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

_BODY = struct.Struct("<QIIHBB")
_CRC = struct.Struct("<I")
RECORD_BYTES = _BODY.size + _CRC.size
_VERSION = 1
_TURN_MASK = 0xFFFF


class Mark(NamedTuple):
    """One record. `instance32` and `boot32` are CRC-32s of the journal's instance and of the kernel's boot id;
    `durability` is what the commit was made with (0 fsync, 1 os, 2 memory)."""

    last_seq: int
    instance32: int
    boot32: int
    durability: int
    turn: int = 0


def unpack(data: bytes) -> Mark | None:
    """The record, or None when these bytes are not a whole one."""
    if len(data) != RECORD_BYTES:
        return None
    body = data[: _BODY.size]
    if zlib.crc32(body) != _CRC.unpack_from(data, _BODY.size)[0]:
        return None
    last_seq, instance32, boot32, turn, durability, version = _BODY.unpack(body)
    if version != _VERSION:
        return None
    return Mark(last_seq, instance32, boot32, durability, turn)


class MarkFile:
    """The file with the two records. `newest` is what it said when opened (None: nothing that can be trusted)."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.newest = _newest(os.pread(self._descriptor, 2 * RECORD_BYTES, 0))
        self._turn = (self.newest.turn + 1) & _TURN_MASK if self.newest else 0

    def write(self, last_seq: int, mark: Mark) -> None:
        """Records `last_seq`, and what else `mark` says, over the older of the two records. Raises OSError.

        Every commit waits for this, so nothing is made that is thrown away at once."""
        _, instance32, boot32, durability, _ = mark
        turn = self._turn
        body = _BODY.pack(last_seq, instance32, boot32, turn, durability, _VERSION)
        os.pwrite(self._descriptor, body + _CRC.pack(zlib.crc32(body)), (turn & 1) * RECORD_BYTES)
        self._turn = (turn + 1) & _TURN_MASK

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read(path: Path) -> Mark | None:
    """The newest mark in the file at `path`, without writing; None when there is none."""
    try:
        return _newest(path.read_bytes()[: 2 * RECORD_BYTES])
    except FileNotFoundError:
        return None


def _newest(data: bytes) -> Mark | None:
    first, second = unpack(data[:RECORD_BYTES]), unpack(data[RECORD_BYTES : 2 * RECORD_BYTES])
    if first is None or second is None:
        return first or second
    return second if (second.turn - first.turn) & _TURN_MASK == 1 else first
