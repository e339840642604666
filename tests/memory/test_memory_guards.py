"""Guards of shared memory: each by itself, so that taking it out shows."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from empd.lifecycle import ChildKind
from empd.memory import layout
from empd.memory.arena import Arena
from empd.memory.board import Board, Identity


def test_the_newest_copy_is_never_the_one_being_overwritten() -> None:
    board = Board.create(1)
    writer = board.writer(0, Identity)
    for pid in (1, 2, 3):
        writer.write(Identity(ChildKind.WORKER, "w", pid=pid))
        # As if killed in the middle of the next write.
        at = layout.IDENTITY.copy_at(0, pid + 1)
        whole = os.pread(board.fd, layout.IDENTITY.copy_bytes, at)
        os.pwrite(board.fd, b"\xff" * 20, at)
        found = board.read(0).identity
        assert found is not None
        assert found.pid == pid
        os.pwrite(board.fd, whole, at)
    board.close()


def test_a_blob_of_another_size_does_not_exist(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "spool", tmp_path / "volatile")
    ref = arena.put(b"content", durable=True, encoding="bytes")
    assert arena.exists(ref)
    assert arena.renew(ref)
    cut = msgspec.structs.replace(ref, size=ref.size + 1)
    assert not arena.exists(cut)
    assert not arena.renew(cut)
