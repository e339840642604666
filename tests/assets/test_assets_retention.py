"""Files that are past retention go, with their marks and their folders, and no others."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from empd.asset import AssetConfig, AssetRef
from empd.assets.local import expire
from empd.assets.naming import Mark
from empd.assets.notes import Note, hold
from empd.assets.saver import Saver


def save(root: Path, job: int, content: bytes = b"x") -> AssetRef:
    async def run() -> AssetRef:
        saver = Saver(AssetConfig(), root, 0)
        try:
            return await saver.bind(Mark("a" * 32, job, 1), None).save(content)
        finally:
            await saver.close()

    return asyncio.run(run())


def age(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (1, 1))


def test_old_files_go_with_their_marks_and_folders(tmp_path: Path) -> None:
    old, young = save(tmp_path, 1), save(tmp_path, 2)
    age((tmp_path / old.name).parent)
    assert expire(tmp_path, 3600) == 1
    assert not (tmp_path / old.name).parent.exists()
    assert (tmp_path / young.name).read_bytes() == b"x"
    assert len(list((tmp_path / young.name).parent.iterdir())) == 2
    assert expire(tmp_path, 3600) == 0


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    save(tmp_path, 1)
    part = tmp_path / ".parts" / "coming"
    part.write_bytes(b"x")
    os.utime(part, (1, 1))
    expire(tmp_path, 3600)
    assert part.exists()


def test_the_notes_of_attempts_stay(tmp_path: Path) -> None:
    about = {"service": "s", "place": "local", "instance": "a" * 32, "job": 1, "epoch": 1, "attempt": 1}
    held = hold(tmp_path, Note(prefix="", file_name="", **about))
    os.utime(held.path, (1, 1))
    expire(tmp_path, 3600)
    assert held.path.exists()
    held.drop()


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    assert expire(tmp_path / "missing", 0) == 0


def test_folders_that_go_do_not_stop_what_is_saved_into_them(tmp_path: Path) -> None:
    over = threading.Event()

    def sweep() -> None:
        while not over.is_set():
            expire(tmp_path, -3600)  # everything, at once

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    try:
        refs = [save(tmp_path, 1, str(number).encode()) for number in range(100)]
    finally:
        over.set()
        sweeping.join()
    assert len({ref.name for ref in refs}) == 100
    expire(tmp_path, -3600)
    assert {path.name for path in tmp_path.iterdir()} == {".parts"}
