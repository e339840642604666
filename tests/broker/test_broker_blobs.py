"""The broker's hold on the arena: what is released goes, soon and beside its loop; what a new job names stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import wait_until

from empd.broker.blobs import BlobKeeper
from empd.memory.arena import Arena
from empd.payload import BlobRef

HOUR_S = 3600.0


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return Arena(tmp_path / "spool", tmp_path / "volatile")


@pytest.fixture
def keeper(tmp_path: Path, arena: Arena) -> Iterator[BlobKeeper]:
    keeper = BlobKeeper(tmp_path / "spool", tmp_path / "volatile")
    yield keeper
    keeper.close()


class Gate:
    """Holds the remover up at the moment in which it removes something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        remove = Arena.remove

        def wait_and_remove(arena: Arena, blob_id: str) -> bool:
            self.entered.set()
            assert self.open.wait(60)
            return remove(arena, blob_id)

        monkeypatch.setattr(Arena, "remove", wait_and_remove)


def put(arena: Arena, durable: bool = True) -> BlobRef:
    return arena.put(b"x" * 100, durable=durable, encoding="bytes")


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_released_goes(arena: Arena, keeper: BlobKeeper, durable: bool) -> None:
    first, second, kept = put(arena, durable), put(arena, durable), put(arena, durable)
    keeper.release([first])
    keeper.release([second])
    wait_until(lambda: not arena.exists(first) and not arena.exists(second), "the blobs to go")
    assert keeper.missing([first, second, kept]) == {first.id, second.id}


def test_the_loop_goes_on_while_a_blob_is_removed(
    arena: Arena, keeper: BlobKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, blobs = Gate(monkeypatch), [put(arena) for _ in range(3)]
    keeper.release(blobs[:2])
    assert gate.entered.wait(60)
    keeper.release(blobs[2:])  # returns, or this test does not end
    # Named again: what is being removed is not there any more, what only waits for it stays.
    assert keeper.missing(blobs) == {blobs[0].id}
    gate.open.set()
    wait_until(lambda: not arena.exists(blobs[0]), "the first blob to go")
    keeper.close()
    assert arena.exists(blobs[1])
    assert arena.exists(blobs[2])


def test_closing_removes_what_was_released(arena: Arena, keeper: BlobKeeper) -> None:
    blobs = [put(arena, durable=False) for _ in range(50)]
    keeper.release(blobs)
    keeper.close()
    assert not arena.volatile_dir.exists()


def test_what_cannot_be_removed_does_not_end_the_removing(
    arena: Arena, keeper: BlobKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, bad, good = Arena.remove, put(arena), put(arena)

    def fail_once(arena: Arena, blob_id: str) -> bool:
        if blob_id == bad.id:
            raise PermissionError("not yours")
        return remove(arena, blob_id)

    monkeypatch.setattr(Arena, "remove", fail_once)
    keeper.release([bad, good])
    wait_until(lambda: not arena.exists(good), "the other blob to go")


def test_an_old_blob_that_a_job_names_while_a_sweep_goes_on_stays(
    arena: Arena, keeper: BlobKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has asked who uses the blob, and has seen that it is old; then the job comes."""
    named, unnamed = put(arena), put(arena)
    then_s = time.time() - 2 * HOUR_S
    for blob in (named, unnamed):
        os.utime(arena.spool_dir / blob.id[:2] / blob.id, (then_s, then_s))
    rename = os.rename

    def submit_and_rename(source: str, target: str) -> None:
        if Path(source).name == named.id:
            assert keeper.missing([named]) == frozenset()
        rename(source, target)
        if Path(source).name == unnamed.id:
            assert keeper.missing([unnamed]) == {unnamed.id}

    monkeypatch.setattr(os, "rename", submit_and_rename)
    assert arena.sweep(set(), HOUR_S) == 1
    assert arena.read(named) == b"x" * 100
    assert not arena.exists(unnamed)
    assert [path.name for path in arena.spool_dir.glob("??/*")] == [named.id]
