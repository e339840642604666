"""The arena: payloads and results too large for a frame, one write-once file for each.

    spool_dir/            durable: survives a reboot; fsynced by the sender before its Submit or Done, where
                          `durability` promises so much
      3f/                 first two hex digits of the id
        3f9c…e1           a blob: 32 random hex digits, never reused, never changed once it has this name
        3f9c…e1.part      being written
    volatile_dir/         as above without the fan-out, in /dev/shm (0700): gone after a reboot

A blob gets its name by a rename when it is whole, so who finds it finds all of it. Ids, never paths, cross the
wire, and only what matches `^[0-9a-f]{32}$` ever becomes a path. Only the daemon's user writes here; where the
directory of the spool (the state directory) is open to its group, members of the group can read. Removing a blob
leaves open descriptors and maps valid. Nothing here locks: blobs never change, and each file has one writer.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from empd import clock
from empd.disk import sync_directory
from empd.errors import BlobMissing, FailureClass, Refused
from empd.payload import ENCODINGS, BlobRef

BytesLike = bytes | bytearray | memoryview

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FILE = re.compile(r"([0-9a-f]{32})(\.part)?", re.ASCII)
_PART = ".part"
_SLICE_BYTES = 1 << 20  # crc and write take turns on slices that stay in the cache
_RETRY_AFTER_S = 30.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BlobWriter:
    """Writes one blob piece by piece. Leaving the `with` block without `commit` leaves nothing behind."""

    def __init__(self, path: Path, durable: bool, encoding: str, *, sync: bool, group: bool = False) -> None:
        self._path = path
        self._part = path.with_name(path.name + _PART)
        self._durable = durable
        self._sync = sync
        self._encoding = encoding
        self._size = 0
        self._crc32 = 0
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if group:
            os.fchmod(self._fd, 0o640)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, chunk: BytesLike) -> None:
        """Appends a chunk of any size. Raises Refused when there is no room; the blob is then gone."""
        self._check_open()
        view = memoryview(chunk).cast("B")
        crc32 = self._crc32
        try:
            for start in range(0, len(view), _SLICE_BYTES):
                piece = view[start : start + _SLICE_BYTES]
                crc32 = zlib.crc32(piece, crc32)
                written = os.write(self._fd, piece)
                while written < len(piece):
                    written += os.write(self._fd, piece[written:])
        except OSError as error:
            self.abort()
            raise _refusal(error, self._path.parent) from error
        self._crc32 = crc32
        self._size += len(view)

    def commit(self) -> BlobRef:
        """Ends the blob and gives it its name; one to be synced is on the disk then. Raises Refused as `write` does."""
        self._check_open()
        try:
            if self._sync:
                os.fsync(self._fd)
            os.rename(self._part, self._path)
            if self._sync:
                sync_directory(self._path.parent)
        except OSError as error:
            self.abort()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            raise _refusal(error, self._path.parent) from error
        self._close()
        return BlobRef(self._path.name, self._size, self._crc32, self._durable, self._encoding)

    def abort(self) -> None:
        """Drops what was written. After `commit`, or called again, it does nothing."""
        if self._close():
            with contextlib.suppress(FileNotFoundError):
                self._part.unlink()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ValueError("this blob is already committed or aborted")

    def _close(self) -> bool:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return False
        os.close(fd)
        return True

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Arena:
    """Blobs of one daemon, as its processes and the clients of the same user on the same host see them.

    Making one touches nothing; the directories are made by `make_directories`, or by the first blob. `sync`: durable
    blobs must survive a power loss.
    """

    def __init__(self, spool_dir: Path, volatile_dir: Path, *, sync: bool = True) -> None:
        self.spool_dir = spool_dir
        self.volatile_dir = volatile_dir
        self._sync = sync
        self._ready: set[Path] = set()

    def make_directories(self) -> None:
        """Makes both directories, for the daemon to call at its start. Raises Refused when they cannot be used."""
        for directory in (self.spool_dir, self.volatile_dir):
            try:
                _make_directory(directory, self._group())
            except OSError as error:
                raise _refusal(error, directory) from error

    def _group(self) -> bool:
        """Whether the group may read: the state directory is open to it, and it is the group that files here get."""
        try:
            found = os.stat(self.spool_dir.parent)
        except OSError:
            return False
        return found.st_mode & 0o050 == 0o050 and found.st_gid == os.getegid() and found.st_uid == os.geteuid()

    def usable(self) -> bool:
        """Whether a client can put blobs here for the daemon: the spool is here, and all that is here this user's."""
        try:
            owners = {os.stat(self.spool_dir).st_uid}
            with contextlib.suppress(FileNotFoundError):  # made again by the first that needs it
                owners.add(os.stat(self.volatile_dir).st_uid)
        except OSError:
            return False
        return owners == {os.geteuid()}

    def readable(self) -> bool:
        """Whether blobs can be read here, by the daemon's user or its group."""
        return os.access(self.spool_dir, os.R_OK | os.X_OK)

    def put(self, data: BytesLike | Iterable[BytesLike], *, durable: bool, encoding: str) -> BlobRef:
        """Stores a blob: whole on return, and on the disk where it must be. Raises Refused when there is no room."""
        with self.writer(durable, encoding) as writer:
            if isinstance(data, (bytes, bytearray, memoryview)):
                writer.write(data)
            else:
                for chunk in data:
                    writer.write(chunk)
            return writer.commit()

    def writer(self, durable: bool, encoding: str) -> BlobWriter:
        """A blob to be written piece by piece, as a context manager. Raises Refused when there is no room for it."""
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding is one of {', '.join(ENCODINGS)}, not {encoding!r}")
        path = self._path(secrets.token_hex(16), durable)
        try:
            self._prepare(path.parent)
            return BlobWriter(path, durable, encoding, sync=durable and self._sync, group=self._group())
        except OSError as error:
            raise _refusal(error, path.parent) from error

    def read(self, ref: BlobRef) -> bytes:
        """The blob's bytes. Raises BlobMissing when it is not there, or not the one that was put."""
        fd = self.open(ref)
        try:
            data = os.pread(fd, ref.size, 0)
            if len(data) < ref.size:
                data = _read_rest(fd, data, ref.size)
        finally:
            os.close(fd)
        if len(data) != ref.size or zlib.crc32(data) != ref.crc32:
            raise BlobMissing(f"blob {ref.id} is damaged: its checksum does not fit; submit the payload again")
        return data

    @contextlib.contextmanager
    def view(self, ref: BlobRef, *, verify: bool = True) -> Iterator[memoryview]:
        """The blob's bytes without a copy, until the `with` block ends; it may be removed meanwhile.

        `verify` passes over the bytes once for the checksum. Raises BlobMissing as `read` does.
        """
        fd = self.open(ref)
        try:
            mapped = mmap.mmap(fd, ref.size, access=mmap.ACCESS_READ) if ref.size else None
        finally:
            os.close(fd)
        view = memoryview(mapped) if mapped is not None else memoryview(b"")
        try:
            if verify and zlib.crc32(view) != ref.crc32:
                raise BlobMissing(f"blob {ref.id} is damaged: its checksum does not fit; submit the payload again")
            yield view
        finally:
            # A slice that the caller still holds keeps the map alive; it goes with the slice.
            with contextlib.suppress(BufferError):
                view.release()
                if mapped is not None:
                    mapped.close()

    def open(self, ref: BlobRef) -> int:
        """A read-only descriptor of the blob, for the caller to close. Raises BlobMissing (checks the size only)."""
        path = self._path(ref.id, ref.durable)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise BlobMissing(f"the arena has no blob {ref.id}: {error.strerror}") from error
        size = os.fstat(fd).st_size
        if size != ref.size:
            os.close(fd)
            raise BlobMissing(f"blob {ref.id} has {size} bytes, not {ref.size}")
        return fd

    def exists(self, ref: BlobRef) -> bool:
        """Whether the blob is there in this size. Never opens it."""
        try:
            found = os.lstat(self._path(ref.id, ref.durable))
        except (OSError, BlobMissing):
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == ref.size

    def renew(self, ref: BlobRef) -> bool:
        """Whether the blob is there in this size; no sweep that goes on now takes it away then. Never opens it."""
        # Another user's file cannot be renewed, and is there all the same.
        with contextlib.suppress(OSError, BlobMissing):
            os.utime(self._path(ref.id, ref.durable), follow_symlinks=False)
        return self.exists(ref)

    def find(self, ref_id: str) -> BlobRef | None:
        """The blob with this id, durable or volatile; None: there is none. Reads all of it once for the checksum; the
        encoding is not kept with a blob and counts as `bytes`."""
        if not _ID.fullmatch(ref_id):
            return None
        for durable in (True, False):
            try:
                fd = os.open(self._path(ref_id, durable), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                size = crc32 = 0
                while piece := os.pread(fd, _SLICE_BYTES, size):
                    crc32 = zlib.crc32(piece, crc32)
                    size += len(piece)
            finally:
                os.close(fd)
            return BlobRef(ref_id, size, crc32, durable)
        return None

    def remove(self, ref_id: str) -> bool:
        """Unlinks the blob, durable or volatile; open maps and descriptors stay valid. False: there was none."""
        if not _ID.fullmatch(ref_id):
            return False
        for durable in (True, False):
            with contextlib.suppress(FileNotFoundError):
                self._path(ref_id, durable).unlink()
                return True
        return False

    def usage(self) -> int:
        """Bytes in all blobs, those being written included. Walks the directories."""
        return sum(found.st_size for _, _, found in self._files())

    def aged(self, older_than_s: float) -> set[str]:
        """The ids of blobs untouched for that long."""
        newest_s = clock.now().wall_ns / clock.NS_PER_S - older_than_s
        return {blob_id for _, blob_id, found in self._files() if blob_id and found.st_mtime <= newest_s}

    def sweep(self, known_ids: set[str], older_than_s: float) -> int:
        """Removes unfinished files, and blobs not in `known_ids`, untouched for `older_than_s`; returns how many.

        `older_than_s` must exceed the time that a sender may take between putting a blob and naming it. A blob that is
        renewed meanwhile stays.
        """
        newest_s = clock.now().wall_ns / clock.NS_PER_S - older_than_s
        removed = 0
        for path, blob_id, found in self._files():
            if blob_id in known_ids or found.st_mtime > newest_s:
                continue
            with contextlib.suppress(FileNotFoundError):
                removed += _take_away(path, newest_s)
        return removed

    def _files(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """(path, blob id, or "" for one being written, stat) of every file of the arena; foreign ones are left out."""
        directories = [self.volatile_dir, *(self.spool_dir / f"{number:02x}" for number in range(256))]
        for directory in directories:
            try:
                entries = list(os.scandir(directory))
            except FileNotFoundError:
                continue
            for entry in entries:
                name = _FILE.fullmatch(entry.name)
                # What vanishes between the listing and the look was removed by its owner.
                with contextlib.suppress(FileNotFoundError):
                    if name and entry.is_file(follow_symlinks=False):
                        yield entry.path, "" if name[2] else name[1], entry.stat(follow_symlinks=False)

    def _path(self, blob_id: str, durable: bool) -> Path:
        if not _ID.fullmatch(blob_id):
            raise BlobMissing(f"{blob_id[:64]!r} is not a blob id: it has 32 hex digits in lower case")
        return self.spool_dir / blob_id[:2] / blob_id if durable else self.volatile_dir / blob_id

    def _prepare(self, directory: Path) -> None:
        """Makes the directory where it is missing, and sees once in this process that it is safe to use."""
        if directory in self._ready and directory.is_dir():
            return
        group = self._group()
        if directory == self.volatile_dir:
            _make_directory(directory, group)
        else:
            _make_directory(self.spool_dir, group)
            _make_directory(directory, group)
            if self._sync:
                # Whoever made the fan-out directory may have died before its entry was on the disk.
                sync_directory(self.spool_dir)
                sync_directory(self.spool_dir.parent)
        self._ready.add(directory)


def _take_away(path: str, newest_s: float) -> bool:
    """Removes a file unless it was touched after `newest_s`. A blob's name goes first: who renews it later does not
    find it, and who did so before is seen by the look that follows."""
    aside = path.removesuffix(_PART) + _PART
    os.rename(path, aside)
    if os.lstat(aside).st_mtime > newest_s:
        os.rename(aside, path)
        return False
    os.unlink(aside)
    return True


def _make_directory(directory: Path, group: bool) -> None:
    """Makes a directory that this user alone writes, and (with `group`) its group can read. Raises PermissionError when
    what is there is not one."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(directory)
    # /dev/shm is open to all: somebody else may have made the directory to read or drop what is put there. And a
    # client that runs as root must not leave directories behind that the daemon cannot use.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EACCES, "it is another user's, or open to others")
    mode = 0o750 if group else 0o700
    if stat.S_IMODE(found.st_mode) != mode:
        os.chmod(directory, mode)


def _read_rest(fd: int, first: bytes, size: int) -> bytes:
    """The kernel gives at most 2 GiB at once."""
    pieces, have = [first], len(first)
    while have < size and (piece := os.pread(fd, size - have, have)):
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)


def _refusal(error: OSError, directory: Path) -> Refused:
    """The verdict on a blob that could not be written, with what to do about it."""
    if error.errno in _FULL:
        reason = f"no room for the blob in {directory}; free space there or raise its limit, then submit again"
        return Refused(FailureClass.UNAVAILABLE, reason, _RETRY_AFTER_S)
    if isinstance(error, PermissionError):
        reason = f"may not write to {directory}: {error.strerror}; run as the daemon's user, or upload over HTTP"
        return Refused(FailureClass.AUTH, reason)
    return Refused(FailureClass.UNAVAILABLE, f"cannot write to {directory}: {error.strerror}", _RETRY_AFTER_S)
