"""Locks, the runtime directory, evidence, and the table of children as data."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from empd.device import Device
from empd.errors import ConfigError, StateLocked
from empd.lifecycle import ChildKind, Control, Exit, Notice, evidence_path
from empd.supervisor import evidence, runtime_dir
from empd.supervisor.children import Children, Spec
from empd.supervisor.restart import Goal, Life, State


def test_a_lock_has_one_holder_who_is_named(folder: Path):
    lock = runtime_dir.Lock(folder / "state", "state_dir")
    with pytest.raises(StateLocked, match=f"pid {os.getpid()}"):
        runtime_dir.Lock(folder / "state", "state_dir")
    lock.release()
    lock.release()
    runtime_dir.Lock(folder / "state", "state_dir").release()


def test_a_child_that_sheds_the_lock_does_not_free_it(folder: Path):
    lock = runtime_dir.Lock(folder, "state_dir")
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 1000)
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(StateLocked):
        runtime_dir.Lock(folder, "state_dir")
    lock.release()


def test_the_runtime_directory_is_private_and_swept_of_dead_sockets(folder: Path):
    place = folder / "run"
    runtime_dir.prepare(place)
    assert place.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place / "old.sock"))
    (place / "journal.db").write_text("stays")
    runtime_dir.prepare(place)
    assert sorted(each.name for each in place.iterdir()) == ["evidence", "journal.db", "pid"]
    assert (place / "pid").read_text() == f"{os.getpid()}\n"
    runtime_dir.leave(place)
    assert sorted(each.name for each in place.iterdir()) == ["evidence", "journal.db"]


def test_a_runtime_directory_that_others_can_write_is_refused(folder: Path):
    place = folder / "run"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(ConfigError, match="writable for everybody"):
        runtime_dir.prepare(place)


def test_a_group_may_share_the_runtime_directory(folder: Path):
    place = folder / "run"
    place.mkdir()
    place.chmod(0o750)
    runtime_dir.prepare(place)
    assert place.stat().st_mode & 0o777 == 0o750


def test_stderr_is_teed_and_the_evidence_stays_bounded(folder: Path):
    fd = evidence.open_for(folder, 7)
    stream = io.StringIO()
    tee = evidence.Tee(stream, fd, bytes_max=1000)
    for index in range(200):
        print(f"line {index:04d} \udcff", file=tee)
    tee.flush()
    assert stream.getvalue().count("\n") == 200
    kept = evidence_path(folder, 7).read_bytes()
    assert len(kept) <= 1000
    assert kept.endswith(b"line 0199 \\udcff\n")
    os.close(fd)


def test_one_huge_line_keeps_its_end(folder: Path):
    fd = evidence.open_for(folder, 8)
    evidence.Tee(io.StringIO(), fd, bytes_max=1000).write("x" * 5000 + "the end")
    kept = evidence_path(folder, 8).read_bytes()
    assert len(kept) <= 1000
    assert kept.endswith(b"the end")
    os.close(fd)


def test_the_oldest_evidence_goes_but_never_that_of_the_living(folder: Path):
    for generation in range(1, 11):
        os.close(evidence.open_for(folder, generation))
        os.utime(evidence_path(folder, generation), (generation, generation))
    assert evidence.sweep(folder, {1, 2}, keep=3) == 5
    left = sorted(each.name for each in (folder / "evidence").iterdir())
    assert left == [evidence_path(folder, generation).name for generation in (1, 2, 8, 9, 10)]


def test_without_room_for_evidence_a_child_gets_a_descriptor_all_the_same(folder: Path):
    (folder / "evidence").write_text("in the way")
    fd = evidence.open_for(folder, 1)
    assert os.write(fd, b"lost") == 4
    os.close(fd)


def test_empty_evidence_is_dropped(folder: Path):
    for generation, text in ((1, b""), (2, b"boom")):
        fd = evidence.open_for(folder, generation)
        os.write(fd, text)
        os.close(fd)
        evidence.drop_empty(folder, generation)
    evidence.drop_empty(folder, 3)
    assert [each.name for each in (folder / "evidence").iterdir()] == [evidence_path(folder, 2).name]


def test_slots_are_unique_and_free_again_after_removal():
    children = Children(3)
    members = [children.add(Spec(ChildKind.WORKER, f"w-{index}")) for index in range(3)]
    assert [member.slot for member in members] == [0, 1, 2]
    with pytest.raises(ValueError, match="3 slots"):
        children.add(Spec(ChildKind.WORKER, "w-3"))
    with pytest.raises(ValueError, match="already"):
        children.add(Spec(ChildKind.WORKER, "w-1"))
    children.remove(members[1])
    assert children.add(Spec(ChildKind.WORKER, "w-4")).slot == 1


def test_generations_never_repeat_and_fit_a_signed_field():
    series = {Children(1).next_generation() >> 32 for _ in range(50)}
    assert len(series) == 50
    children = Children(1)
    generations = [children.next_generation() for _ in range(1000)]
    assert len(set(generations)) == 1000
    assert max(generations) < 2**63


def test_the_table_survives_as_plain_data():
    import msgspec

    children = Children(8)
    gpu = Device(0, "GPU-a", "A100", 80 << 30)
    member = children.add(Spec(ChildKind.WORKER, "gpu0", "images", gpu))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    member.generation, member.pid, member.pidfd = children.next_generation(), 4711, 9
    member.life = Life(State.DUMPING, Goal.UP, 5, (1, 2), 2, 1, True)
    member.control, member.last_exit, member.condemned = ours, Exit.HUNG, Exit.GPU_LOST
    member.started_ns, member.ready_ns, member.restarts, member.last_status = 1, 2, 3, 9
    member.outbox.append(Control(Notice.GONE, ChildKind.WEB, 1, 2, 3, 4, 5, -6))
    children.add(Spec(ChildKind.BROKER, "broker"))

    carried = msgspec.msgpack.decode(msgspec.msgpack.encode(children.to_records()))
    again = Children.from_records(carried)
    found = again.find(member.slot, member.generation)
    assert found is not None
    assert found.control is not None
    found.control.send(b"hello")
    assert theirs.recv(10) == b"hello"
    ours.detach()
    member.control = found.control
    assert found == member
    assert again.get("broker") == children.get("broker")
    assert again.next_generation() == children.next_generation()
    found.control.close()
    theirs.close()
