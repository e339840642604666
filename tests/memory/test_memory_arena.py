"""The arena: a blob is there whole or not at all, and nothing stays behind."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empd.errors import BlobMissing, EmpdError, FailureClass, Refused
from empd.memory import arena as arenas
from empd.memory.arena import Arena
from empd.payload import ENCODINGS, BlobRef

MIB = 1 << 20
both_kinds = pytest.mark.parametrize("durable", [True, False], ids=["durable", "volatile"])
bad_ids = pytest.mark.parametrize(
    "bad",
    [
        "",
        "../../etc/passwd",
        "a" * 31,
        "a" * 33,
        "A" * 32,
        "g" * 32,
        "a" * 32 + "\n",
        "a" * 31 + "/",
        "٣" * 32,
        "." * 32,
    ],
)


@pytest.fixture
def arena(tmp_path):
    volatile = Path(f"/dev/shm/empd-test-{secrets.token_hex(6)}")
    yield Arena(tmp_path / "spool", volatile)
    if volatile.is_dir():
        for left in volatile.iterdir():
            left.unlink()
        volatile.rmdir()


def files_of(arena):
    return [path for top in (arena.spool_dir, arena.volatile_dir) for path in top.rglob("*") if path.is_file()]


def file_of(arena, ref):
    (path,) = [path for path in files_of(arena) if path.name == ref.id]
    return path


def child(arena, program, *arguments):
    """A process of its own that has `arena`."""
    text = (
        "import os, resource, sys; from pathlib import Path; from empd.memory.arena import Arena; "
        "from empd.errors import *; from empd.payload import BlobRef\n"
        "arena = Arena(Path(sys.argv[1]), Path(sys.argv[2]))\n" + program
    )
    root = str(Path(arenas.__file__).parents[2])
    command = [sys.executable, "-c", text, str(arena.spool_dir), str(arena.volatile_dir), *arguments]
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- there and back ----------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.one_of(st.binary(max_size=300), st.lists(st.binary(max_size=50), max_size=8)),
    st.booleans(),
    st.sampled_from(ENCODINGS),
)
def test_what_was_put_is_read(arena, data, durable, encoding):
    ref = arena.put(data if isinstance(data, bytes) else iter(data), durable=durable, encoding=encoding)
    content = data if isinstance(data, bytes) else b"".join(data)
    assert (ref.size, ref.crc32, ref.durable, ref.encoding) == (len(content), zlib.crc32(content), durable, encoding)
    assert arena.exists(ref)
    assert arena.read(ref) == content
    with arena.view(ref) as view:
        assert view == content
    assert arena.remove(ref.id)
    assert arena.usage() == 0


@both_kinds
def test_large_blobs_in_every_form(arena, durable):
    content = os.urandom(3 * MIB + 17)
    slices = [content[start : start + 700_001] for start in range(0, len(content), 700_001)]
    for data in (content, bytearray(content), memoryview(content), memoryview(content)[5:], iter(slices)):
        ref = arena.put(data, durable=durable, encoding="bytes")
        expected = content[5:] if isinstance(data, memoryview) and len(data) < len(content) else content
        assert arena.read(ref) == expected


def test_a_view_of_wide_items_is_counted_in_bytes(arena):
    wide = memoryview(b"abcdefgh" * 10).cast("Q")
    ref = arena.put(wide, durable=False, encoding="bytes")
    assert (ref.size, arena.read(ref)) == (80, b"abcdefgh" * 10)


def test_ids_are_never_reused_and_files_are_the_users_alone(arena):
    refs = [arena.put(b"same", durable=number % 2 == 0, encoding="bytes") for number in range(300)]
    assert len({ref.id for ref in refs}) == 300
    for path in files_of(arena):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(arena.spool_dir.stat().st_mode) == 0o700
    durable = next(ref for ref in refs if ref.durable)
    assert file_of(arena, durable) == arena.spool_dir / durable.id[:2] / durable.id
    assert arena.usage() == 300 * 4


def test_a_streamed_blob_appears_at_its_commit(arena):
    with arena.writer(True, "json") as writer:
        writer.write(b'{"a":')
        writer.write(b" 1}")
        assert writer.size == 8
        assert [path.suffix for path in files_of(arena)] == [".part"]
        ref = writer.commit()
        assert [path.name for path in files_of(arena)] == [ref.id]
    assert arena.read(ref) == b'{"a": 1}'
    for late in (lambda: writer.write(b"more"), writer.commit):
        with pytest.raises(ValueError, match="already committed"):
            late()
    assert arena.read(ref) == b'{"a": 1}'


@both_kinds
def test_a_blob_given_up_leaves_nothing(arena, durable):
    with arena.writer(durable, "bytes") as writer:
        writer.write(b"half")
    assert files_of(arena) == []

    def failing():
        yield b"half"
        raise RuntimeError("the sender's own fault")

    with pytest.raises(RuntimeError, match="own fault"):
        arena.put(failing(), durable=durable, encoding="bytes")
    assert files_of(arena) == []


def test_an_open_descriptor_gives_ranges(arena):
    ref = arena.put(b"0123456789", durable=False, encoding="bytes")
    fd = arena.open(ref)
    try:
        assert os.pread(fd, 3, 4) == b"456"
        with pytest.raises(OSError, match="Bad file"):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def test_durable_content_is_on_the_disk_before_its_name_and_the_name_before_put_returns(arena, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd):
        order.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def noted_rename(source, target):
        order.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    ref = arena.put(b"kept", durable=True, encoding="bytes")
    path = file_of(arena, ref)
    assert order[:2] == [("fsync", str(arena.spool_dir)), ("fsync", str(arena.spool_dir.parent))]
    assert order[2:] == [("fsync", f"{path}.part"), ("rename", str(path)), ("fsync", str(path.parent))]
    order.clear()
    arena.put(b"lost", durable=False, encoding="bytes")
    assert [call for call, _ in order] == ["rename"]


# --- what is not there -------------------------------------------------------------------------------------------


@bad_ids
def test_only_ids_become_paths(arena, bad):
    arena.put(b"x", durable=True, encoding="bytes")
    for durable in (True, False):
        ref = BlobRef(bad, 1, 0, durable)
        assert not arena.exists(ref)
        for take in (arena.read, arena.open, lambda ref: arena.view(ref).__enter__()):
            with pytest.raises(BlobMissing, match="is not a blob id"):
                take(ref)
    assert not arena.remove(bad)


@both_kinds
def test_a_blob_that_is_gone_or_of_another_size_is_missing(arena, durable):
    ref = arena.put(b"content", durable=durable, encoding="bytes")
    for wrong in (
        BlobRef(ref.id, 6, ref.crc32, durable),
        BlobRef(ref.id, 8, ref.crc32, durable),
        BlobRef(ref.id, 7, ref.crc32, not durable),
        BlobRef("0" * 32, 7, ref.crc32, durable),
    ):
        assert not arena.exists(wrong)
        for take in (arena.read, arena.open):
            with pytest.raises(BlobMissing, match=wrong.id):
                take(wrong)
    assert arena.remove(ref.id)
    assert not arena.remove(ref.id)
    assert not arena.exists(ref)
    with pytest.raises(BlobMissing, match="No such file"):
        arena.read(ref)


@both_kinds
def test_damage_is_noticed(arena, durable):
    ref = arena.put(b"content", durable=durable, encoding="bytes")
    file_of(arena, ref).write_bytes(b"c0ntent")
    assert arena.exists(ref), "existence and size only"
    with pytest.raises(BlobMissing, match="checksum"):
        arena.read(ref)
    with pytest.raises(BlobMissing, match="checksum"), arena.view(ref):
        pass
    with arena.view(ref, verify=False) as view:
        assert view == b"c0ntent"


def test_a_link_in_a_blobs_place_is_not_followed(arena, tmp_path):
    ref = arena.put(b"content", durable=False, encoding="bytes")
    path = file_of(arena, ref)
    (tmp_path / "elsewhere").write_bytes(b"content")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert not arena.exists(ref)
    with pytest.raises(BlobMissing):
        arena.read(ref)


def test_existence_is_answered_without_opening(arena):
    ref = arena.put(b"content", durable=True, encoding="bytes")
    program = (
        "ref = BlobRef(sys.argv[3], 7, 0)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))\n"
        "try: arena.open(ref)\n"
        "except BlobMissing as error: print(arena.exists(ref), error)"
    )
    output, _ = child(arena, program, ref.id).communicate(timeout=60)
    assert output.startswith("True ")
    assert "Too many open files" in output


# --- removal under readers ---------------------------------------------------------------------------------------


@both_kinds
def test_maps_and_descriptors_outlive_the_blob(arena, durable):
    content = os.urandom(2 * MIB)
    ref = arena.put(content, durable=durable, encoding="bytes")
    fd = arena.open(ref)
    with arena.view(ref) as view:
        arena.remove(ref.id)
        assert not arena.exists(ref)
        assert view == content
        kept = view[-10:]
    assert kept == content[-10:], "a slice keeps its map"
    assert os.pread(fd, len(content), 0) == content
    os.close(fd)


def test_readers_see_the_whole_blob_or_none_while_it_is_removed(arena):
    content = os.urandom(MIB)
    refs = [arena.put(content, durable=False, encoding="bytes") for _ in range(20)]
    wrong, ended = [], []
    started = threading.Barrier(4)

    def reader():
        started.wait(60)
        for ref in refs:
            try:
                while True:
                    if arena.read(ref) != content:
                        wrong.append(ref)
                    with arena.view(ref, verify=False) as view:
                        if view != content:
                            wrong.append(ref)
            except BlobMissing:
                ended.append(ref)

    readers = [threading.Thread(target=reader) for _ in range(3)]
    for each in readers:
        each.start()
    started.wait(60)
    for ref in refs:
        arena.read(ref)
        arena.remove(ref.id)
    for each in readers:
        each.join(60)
    assert wrong == []
    assert len(ended) == 3 * len(refs)


# --- no room, no right -------------------------------------------------------------------------------------------


@both_kinds
def test_no_room_is_a_refusal_that_leaves_nothing(arena, durable):
    program = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500000, 1500000))\n"
        "try: arena.put(bytes(4 << 20), durable=sys.argv[3] == 'True', encoding='bytes')\n"
        "except Refused as error: print(error.failure, error.retry_after_s, error.reason)\n"
        "print(arena.put(b'small', durable=True, encoding='bytes').size)"
    )
    output, _ = child(arena, program, str(durable)).communicate(timeout=60)
    verdict, small = output.splitlines()
    assert verdict.startswith("unavailable 30.0 no room for the blob in ")
    assert "free space" in verdict
    assert small == "5"
    assert arena.usage() == 5, "nothing of the refused blob is left"


@pytest.mark.parametrize(
    ("number", "failure", "advice"),
    [
        (errno.ENOSPC, FailureClass.UNAVAILABLE, "free space"),
        (errno.EDQUOT, FailureClass.UNAVAILABLE, "raise its limit"),
        (errno.EFBIG, FailureClass.UNAVAILABLE, "free space"),
        (errno.EACCES, FailureClass.AUTH, "daemon's user"),
        (errno.EPERM, FailureClass.AUTH, "over HTTP"),
        (errno.EIO, FailureClass.UNAVAILABLE, "Input/output error"),
        (errno.EROFS, FailureClass.UNAVAILABLE, "Read-only"),
    ],
)
def test_each_error_of_the_disk_has_its_verdict(number, failure, advice):
    refusal = arenas._refusal(OSError(number, os.strerror(number)), Path("/some/where"))
    assert isinstance(refusal, EmpdError)
    assert refusal.failure is failure
    assert advice in refusal.reason
    assert "/some/where" in refusal.reason
    assert "\n" not in str(refusal)


def test_a_blob_whose_name_cannot_be_made_is_refused_and_gone(arena):
    with arena.writer(False, "bytes") as writer:
        writer.write(b"content")
        files_of(arena)[0].unlink()
        with pytest.raises(Refused, match="cannot write"):
            writer.commit()
    assert files_of(arena) == []


def test_a_directory_that_others_can_write_is_not_used(arena, tmp_path):
    arena.volatile_dir.mkdir()
    arena.volatile_dir.chmod(0o777)
    with pytest.raises(Refused, match="open to others") as caught:
        arena.put(b"secret", durable=False, encoding="bytes")
    assert caught.value.failure is FailureClass.AUTH
    arena.volatile_dir.chmod(0o700)
    linked = Arena(tmp_path / "spool", tmp_path / "link")
    (tmp_path / "link").symlink_to(arena.volatile_dir)
    with pytest.raises(Refused, match="another user's"):
        linked.put(b"secret", durable=False, encoding="bytes")
    assert files_of(arena) == []


def test_a_file_in_the_directorys_place_is_a_refusal(tmp_path):
    (tmp_path / "spool").write_text("not a directory")
    with pytest.raises(Refused, match="cannot write"):
        Arena(tmp_path / "spool", tmp_path / "volatile").put(b"x", durable=True, encoding="bytes")


def test_directories_that_vanish_are_made_again(arena):
    arena.remove(arena.put(b"x", durable=False, encoding="bytes").id)
    arena.volatile_dir.rmdir()
    assert arena.read(arena.put(b"y", durable=False, encoding="bytes")) == b"y"


def test_unknown_encodings_are_refused(arena):
    with pytest.raises(ValueError, match="msgpack, json, bytes"):
        arena.put(b"x", durable=False, encoding="pickle")
    assert not arena.volatile_dir.exists()


def test_an_arena_is_usable_where_both_directories_are_this_users(arena):
    assert not arena.usable()
    arena.put(b"x", durable=False, encoding="bytes")
    assert not arena.usable()
    arena.make_directories()
    arena.make_directories()
    assert arena.usable()
    assert {stat.S_IMODE(top.stat().st_mode) for top in (arena.spool_dir, arena.volatile_dir)} == {0o700}
    arena.spool_dir.chmod(0o770)
    with pytest.raises(Refused, match="open to others"):
        arena.make_directories()
    with pytest.raises(Refused, match="open to others"):
        arena.put(b"x", durable=True, encoding="bytes")
    assert list(arena.spool_dir.iterdir()) == [], "no directory is left in somebody else's spool"


def test_the_group_reads_where_the_state_directory_is_open_to_it(tmp_path, monkeypatch):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    arena = Arena(state / "spool", tmp_path / "volatile")

    def modes():
        refs = [arena.put(b"x", durable=durable, encoding="bytes") for durable in (True, False)]
        files = [file_of(arena, ref) for ref in refs]
        places = {arena.spool_dir, arena.volatile_dir, *(path.parent for path in files)}
        return {stat.S_IMODE(p.stat().st_mode) for p in files}, {stat.S_IMODE(p.stat().st_mode) for p in places}

    for state_mode, file_mode, directory_mode in ((0o700, 0o600, 0o700), (0o750, 0o640, 0o750), (0o710, 0o600, 0o700)):
        state.chmod(state_mode)
        arena = Arena(state / "spool", tmp_path / "volatile")
        arena.make_directories()
        for each in arena.spool_dir.iterdir():
            shutil.rmtree(each)
        assert modes() == ({file_mode}, {directory_mode})
    # A group that is not the one that files here get is told nothing.
    state.chmod(0o750)
    another = os.getegid() + 4321
    monkeypatch.setattr(os, "getegid", lambda: another)
    assert stat.S_IMODE(file_of(arena, arena.put(b"x", durable=True, encoding="bytes")).stat().st_mode) == 0o600


# --- leftovers ---------------------------------------------------------------------------------------------------


def age(path, seconds):
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@both_kinds
def test_the_sweep_takes_what_is_old_and_unknown_only(arena, durable):
    known, unknown, fresh = (arena.put(b"abc", durable=durable, encoding="bytes") for _ in range(3))
    for ref in (known, unknown):
        age(file_of(arena, ref), 100)
    foreign = arena.volatile_dir if not durable else file_of(arena, known).parent
    (foreign / "README").write_text("not the arena's")
    age(foreign / "README", 100)
    assert arena.usage() == 9
    assert arena.sweep({known.id}, 50) == 1
    assert [arena.exists(ref) for ref in (known, unknown, fresh)] == [True, False, True]
    assert arena.sweep({known.id}, 50) == 0
    assert arena.sweep(set(), 0) == 2
    assert arena.usage() == 0
    assert (foreign / "README").exists()


def test_an_arena_without_directories_is_empty(arena):
    assert (arena.usage(), arena.sweep(set(), 0), arena.remove("0" * 32)) == (0, 0, False)


@both_kinds
def test_a_sender_killed_in_mid_put_leaves_only_what_the_sweep_takes(arena, durable):
    program = (
        "def chunks():\n"
        "    while True:\n"
        "        yield bytes(1 << 16)\n"
        "        print('written', flush=True)\n"
        "        sys.stdin.readline()\n"
        "arena.put(chunks(), durable=sys.argv[3] == 'True', encoding='bytes')"
    )
    sender = child(arena, program, str(durable))
    try:
        assert sender.stdout.readline() == "written\n"
    finally:
        sender.send_signal(signal.SIGKILL)
        sender.communicate(timeout=60)
    (left,) = files_of(arena)
    assert left.suffix == ".part"
    assert arena.usage() == left.stat().st_size >= 1 << 16
    assert not arena.exists(BlobRef(left.stem, left.stat().st_size, 0, durable)), "half a blob has no name"
    assert arena.sweep({left.stem}, 3600) == 0, "it may still be in the works"
    age(left, 7200)
    assert arena.sweep({left.stem}, 3600) == 1
    assert files_of(arena) == []
