"""Notes of attempts: held as long as their writer lives, found when it has died, and whole or not there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from empd.assets import notes
from empd.assets.notes import NOTES, Note, hold, left


def note(job: int = 1, epoch: int = 5, attempt: int = 1) -> Note:
    return Note(
        service="s", place="local", instance="ab" * 16, job=job, epoch=epoch, attempt=attempt, prefix="p", file_name=""
    )


def names(root: Path) -> set[str]:
    return {path.name for path in (root / NOTES).glob("*")}


def held_elsewhere(root: Path, given: Note) -> int:
    """Another process that holds a note, and is killed by who asked for it; returns once it has it."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = hold(root, given)
            os.write(told, b"1")
            time.sleep(60)
            kept.release()
        finally:
            os._exit(0)
    os.close(told)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    return child


def test_a_note_is_found_only_when_its_writer_has_died(tmp_path: Path) -> None:
    child = held_elsewhere(tmp_path, note())
    try:
        assert list(left(tmp_path)) == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (found,) = left(tmp_path)
    assert found.note == note()
    assert found.note.naming.folder == "p/abababab-0000000000001"
    assert list(left(tmp_path)) == []  # it is held by who found it
    found.release()
    found.release()
    del found
    assert len(list(left(tmp_path))) == 1  # and nobody keeps what was found
    (again,) = left(tmp_path)
    again.drop()
    assert names(tmp_path) == set()


def test_nobody_finds_a_note_that_went_between_opening_and_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(tmp_path, note()).release()
    lock = notes.fcntl.flock

    def gone_first(fd: int, operation: int) -> None:
        (tmp_path / NOTES / "0000000000001-5").unlink(missing_ok=True)
        lock(fd, operation)

    monkeypatch.setattr(notes.fcntl, "flock", gone_first)
    assert list(left(tmp_path)) == []


def test_a_writer_that_died_too_early_leaves_nothing_for_long(tmp_path: Path) -> None:
    folder = tmp_path / NOTES
    folder.mkdir()
    (folder / "0000000000001-5.part").write_bytes(b"{")
    (folder / "0000000000002-5").write_bytes(b"")
    assert list(left(tmp_path)) == []
    assert names(tmp_path) == {"0000000000001-5.part"}
    os.utime(folder / "0000000000001-5.part", (1, 1))
    assert list(left(tmp_path)) == []
    assert names(tmp_path) == set()


def test_without_notes_there_is_nothing_to_find(tmp_path: Path) -> None:
    assert list(left(tmp_path / "missing")) == []
