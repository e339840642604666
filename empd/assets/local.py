"""Assets on the daemon's own disk; the web process serves them under `/v1/assets/`.

    root/<name>                 an asset: whole from the moment it has this name, on the disk before it is reported
    root/<folder>/.<file>.empd  its mark: whose it is, as JSON. Written before the asset is renamed into place, so after
                                a crash it may name an attempt whose bytes never came: what follows has a higher epoch
    root/.parts/                files being written
    root/.attempts/             see `notes.py`

A folder is locked (flock) while a mark is read and an asset replaced, so of two attempts the later one always wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from empd import clock
from empd.asset import AssetFailed
from empd.assets.content import Block, Intake
from empd.assets.naming import Mark, Naming, epoch_of
from empd.assets.notes import NOTES
from empd.assets.store import Request, Stored, check_rival, is_leftover
from empd.disk import sync_directory
from empd.errors import FailureClass
from empd.media import media_type

URL_PREFIX = "/v1/assets/"
PARTS = ".parts"
PART_KEPT_S = 86_400.0
"""A file that nobody has written to for so long was left by a writer that died."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHECK_BYTES = 64 << 20
_TORN = ".part"
_RETRY_AFTER_S = 30.0

T = TypeVar("T")


class LocalStore:
    """Files under `root`. Below `free_bytes_min` of free disk nothing is saved."""

    provider = "local"

    def __init__(self, root: Path, free_bytes_min: int) -> None:
        self._root = root
        self._parts = root / PARTS
        self._free_bytes_min = free_bytes_min

    async def open(self) -> None:
        """Makes the directories; drops what dead writers left."""
        await self._in_thread(self._open)

    async def close(self) -> None:
        """Nothing is held."""

    async def check(self) -> None:
        """Looks at the free disk."""
        await self._in_thread(functools.partial(self._check_room, 0))

    async def put(self, intake: Intake, request: Request) -> Stored:
        """See Store.put."""
        part = self._parts / secrets.token_hex(16)
        try:
            block = await intake.block()
            kind = media_type(block.data, intake.ended)
            fd = await self._in_thread(functools.partial(self._begin, part))
            try:
                await self._write(fd, block, intake)
                await self._in_thread(functools.partial(os.fsync, fd))
            finally:
                os.close(fd)
            name = request.naming.final(request.output, intake.sha256, kind, request.hint)
            mark = request.naming.mark._replace(output=request.output)
            fields = {**request.metadata, **mark.fields(), "empd_sha256": intake.sha256}
            await self._in_thread(functools.partial(self._publish, part, name, mark, fields))
        except BaseException:  # whatever it is, it is raised again; no half a file stays
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        url = URL_PREFIX + urllib.parse.quote(name)
        return Stored(name, kind, intake.size_bytes, intake.sha256, url)

    async def sweep(self, naming: Naming, keep: Collection[str]) -> int:
        """See Store.sweep."""
        return await self._in_thread(functools.partial(self._sweep, naming, keep))

    async def discard(self, name: str, mark: Mark) -> bool:
        """See Store.discard."""

        def mine(fields: Mapping[str, str]) -> bool:
            return mark.owns(fields) and epoch_of(fields) == mark.epoch

        return await self._in_thread(functools.partial(self._remove, name, mine))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise _failure(error, self._root) from error

    def _open(self) -> None:
        self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)
        newest_s = clock.now().wall_ns / clock.NS_PER_S - PART_KEPT_S
        for entry in os.scandir(self._parts):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < newest_s:
                    os.unlink(entry)

    def _check_room(self, coming_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._root).free
        if free_bytes - coming_bytes < self._free_bytes_min:
            reason = (
                f"the disk of {self._root} has {free_bytes} bytes free, disk_free_min_bytes = {self._free_bytes_min}"
            )
            raise _no_room(reason)

    def _begin(self, part: Path) -> int:
        self._check_room(0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(part, flags, 0o640)
        except FileNotFoundError:
            self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(part, flags, 0o640)

    async def _write(self, fd: int, block: Block, intake: Intake) -> None:
        checked_at = 0
        while block.data:
            if intake.size_bytes - checked_at >= _CHECK_BYTES:
                checked_at = intake.size_bytes
                await self._in_thread(functools.partial(self._check_room, len(block.data)))
            await self._in_thread(functools.partial(_write_all, fd, block.data))
            block.drop()
            if intake.ended:
                break
            block = await intake.block()

    # --- names and marks, in a thread --------------------------------------------------------------------------------

    def _publish(self, part: Path, name: str, mark: Mark, fields: dict[str, str]) -> None:
        path = self._root / name
        while True:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            try:
                with _locked(path.parent) as folder_fd:
                    rival = _read_mark(path)
                    if rival or path.exists():
                        check_rival(name, rival, mark)
                    _write_mark(path, fields)
                    os.rename(part, path)
                    os.fsync(folder_fd)
                break
            except FileNotFoundError:
                if not part.exists():
                    raise
                # `expire` found the folder empty, and took it away in between.
        for folder in path.parent.parents:
            if folder == self._root.parent:
                break
            sync_directory(folder)

    def _sweep(self, naming: Naming, keep: Collection[str]) -> int:
        removed = 0
        for scope in naming.scopes():
            folder, _, beginning = scope.rpartition("/")
            _drop_torn_marks(self._root / folder)
            for path in _marked(self._root / folder, beginning):
                name = str(path.relative_to(self._root))
                removed += self._remove(name, functools.partial(is_leftover, name, naming.mark, keep))
        with contextlib.suppress(OSError):  # there are others in it, or it was never made
            os.rmdir(self._root / naming.folder)
        return removed

    def _remove(self, name: str, wanted: Callable[[Mapping[str, str]], bool]) -> bool:
        path = self._root / name
        try:
            with _locked(path.parent):
                if not wanted(_read_mark(path)):
                    return False
                path.unlink(missing_ok=True)
                _mark_path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        return True


def expire(root: Path, older_than_s: float) -> int:
    """Removes assets that were saved longer ago, their marks, and folders that are empty then; how many assets."""
    newest_s = clock.now().wall_ns / clock.NS_PER_S - older_than_s
    removed = 0
    for folder, folders, files in os.walk(root, topdown=False):
        if {PARTS, NOTES} & set(Path(folder).relative_to(root).parts):
            continue
        for name in files:
            path = Path(folder, name)
            with contextlib.suppress(OSError), _locked(path.parent):
                if path.lstat().st_mtime < newest_s:
                    path.unlink()
                    removed += not name.startswith(".")
                    # Without its asset a mark fences nothing any more.
                    _mark_path(path).unlink(missing_ok=True)
        if (folders or files) and Path(folder) != root:
            with contextlib.suppress(OSError):  # not empty, or gone
                os.rmdir(folder)
    return removed


def _mark_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.empd")


def _read_mark(path: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(_mark_path(path).read_bytes(), type=dict[str, str])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _write_mark(path: Path, fields: dict[str, str]) -> None:
    target = _mark_path(path)
    part = target.with_name(target.name + _TORN)
    with open(part, "wb") as file:
        file.write(msgspec.json.encode(fields))
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, target)


def _drop_torn_marks(folder: Path) -> None:
    """Marks are written under the folder's lock: one that is half written while it is ours was its writer's last."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _locked(folder):
        for path in folder.glob(f".*.empd{_TORN}"):
            path.unlink(missing_ok=True)


def _marked(folder: Path, beginning: str) -> Iterator[Path]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.startswith(f".{beginning}") and name.endswith(".empd"):
            yield folder / name[1 : -len(".empd")]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _no_room(reason: str) -> AssetFailed:
    text = f"no room for the asset: {reason}"
    return AssetFailed(FailureClass.UNAVAILABLE, text, upstream=True, retry_after_s=_RETRY_AFTER_S)


def _failure(error: OSError, root: Path) -> AssetFailed:
    if error.errno in _FULL:
        return _no_room(f"{root}: {error.strerror}")
    reason = f"{root} cannot be used for assets: {error.strerror or error}"
    return AssetFailed(FailureClass.UNAVAILABLE, reason, upstream=True, retry_after_s=_RETRY_AFTER_S)
