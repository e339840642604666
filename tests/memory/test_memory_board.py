"""The board: what is written is read, by any process, whoever was killed in the middle of a write."""

from __future__ import annotations

import itertools
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.lifecycle import ChildKind, Exit
from empd.memory import layout
from empd.memory.board import UNKNOWN, Activity, Board, Gauges, Identity, SlotState

KILLS = 10_000
KILLERS = 2
NEWER = layout.HEADER.pack(layout.MAGIC, layout.VERSION + 1, 4)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
texts = st.text(string.printable + "äé漢🦀", max_size=12)  # at most 48 bytes

identities = st.builds(
    Identity,
    kind=st.sampled_from(ChildKind),
    name=texts,
    pid=i32,
    generation=u64,
    state=st.sampled_from(SlotState),
    started_mono_ns=u64,
    restarts=u32,
    last_exit=st.none() | st.sampled_from(Exit),
    last_wait_status=i32,
    device_uuid=texts,
    virtual=st.booleans(),
)
activities = st.builds(Activity, *[u64] * 3, st.floats(0, 1), *[u64] * 5, spares=st.tuples(*[u64] * layout.SPARES))
gauges = st.builds(Gauges, *[i64] * len(Gauges._fields))
groups = st.sampled_from([(layout.IDENTITY, identities), (layout.ACTIVITY, activities), (layout.GAUGES, gauges)])


@pytest.fixture
def board():
    with_four = Board.create(4)
    yield with_four
    with_four.close()


def packed(group, sequence, value):
    buffer = bytearray(group.copy_bytes)
    group.pack(buffer, sequence, value)
    return bytes(buffer)


# --- the layout --------------------------------------------------------------------------------------------------


def test_copies_and_slots_do_not_overlap():
    spans = []
    for slot in range(3):
        for group in (layout.IDENTITY, layout.ACTIVITY, layout.GAUGES):
            spans += [(group.copy_at(slot, copy), group.copy_at(slot, copy) + group.copy_bytes) for copy in (0, 1)]
    spans.sort()
    assert spans[0][0] >= layout.HEADER.size
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= layout.HEADER_BYTES + 3 * layout.SLOT_BYTES


def test_the_drawing_tells_the_offsets():
    drawn = next(line for line in layout.__doc__.splitlines() if line.startswith("    slot")).split()[1:]
    groups_in_order = (layout.IDENTITY, layout.ACTIVITY, layout.GAUGES)
    at = [group.offset + copy * group.copy_spacing for group in groups_in_order for copy in (0, 1)]
    assert [int(number) for number in drawn] == [*at, layout.SLOT_BYTES]


def test_a_group_that_does_not_fit_its_place_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        layout.Group(0, 64, "<60s", tuple, tuple)


@given(st.data())
def test_every_value_survives_packing(data):
    group, values = data.draw(groups)
    value, sequence = data.draw(values), data.draw(st.integers(1, 2**64 - 1))
    pair = packed(group, sequence, value).ljust(group.pair_bytes, b"\0")
    expected = value
    if isinstance(value, Identity):  # a text cannot end in zeros: they are its padding
        expected = value._replace(name=value.name.rstrip("\0"), device_uuid=value.device_uuid.rstrip("\0"))
    assert group.newest(pair) == (sequence, expected)


@given(st.data())
def test_a_write_cut_at_any_byte_leaves_the_older_copy_or_the_whole_new_one(data):
    group, values = data.draw(groups)
    sequence = data.draw(st.integers(2, 2**40))
    older, former, newer = data.draw(values), data.draw(values), data.draw(values)
    cut = data.draw(st.integers(0, group.copy_bytes))
    memory = bytearray(group.pair_bytes)

    def place(number, value, length):
        at = (number & 1) * group.copy_spacing
        memory[at : at + length] = packed(group, number, value)[:length]

    place(sequence - 2, older, group.copy_bytes)
    place(sequence - 1, former, group.copy_bytes)
    place(sequence, newer, cut)
    found = group.newest(bytes(memory))
    assert found is not None
    whole = bytes(memory[(sequence & 1) * group.copy_spacing :][: group.copy_bytes]) == packed(group, sequence, newer)
    assert found[0] == (sequence if whole else sequence - 1)
    assert found[1] == group.build(group.body.unpack(group.body.pack(*group.fields(newer if whole else former))))


@given(st.data())
def test_bytes_that_land_in_any_order_are_seen_as_torn(data):
    """What another core may see of a write on a machine that reorders stores: any subset of the new bytes."""
    group, values = data.draw(groups)
    former, newer = data.draw(values), data.draw(values)
    old, new = packed(group, 4, former), packed(group, 6, newer)
    landed = data.draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old)))
    mixed = bytes(n if here else o for o, n, here in zip(old, new, landed, strict=True))
    found = group.newest(mixed.ljust(group.copy_spacing, b"\0") + packed(group, 5, former))
    assert found is not None
    assert found[0] == (6 if mixed == new else 5)


@given(st.data(), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(data, bit):
    group, values = data.draw(groups)
    copy = bytearray(packed(group, 2, data.draw(values)))
    copy[data.draw(st.integers(0, len(copy) - 1))] ^= 1 << bit
    assert group.newest(bytes(copy).ljust(group.pair_bytes, b"\0")) is None


@given(st.text(max_size=100))
def test_long_texts_are_cut_between_characters(text):
    cut = layout._cut(text)
    assert len(cut) <= layout.TEXT_BYTES_MAX
    assert text.startswith(cut.decode())
    assert len(cut) > layout.TEXT_BYTES_MAX - 4 or cut.decode() == text


# --- the board ---------------------------------------------------------------------------------------------------


def test_a_slot_is_empty_until_it_is_written(board):
    assert board.read(0) == (None, None, None)
    assert board.read_taken() == []


def test_taken_slots_are_read_in_order_and_left_ones_are_not(board):
    written = {slot: Identity(ChildKind.WORKER, f"worker-{slot}", pid=slot) for slot in (3, 0, 2)}
    for slot, identity in written.items():
        board.writer(slot, Identity).write(identity)
    board.writer(1, Activity).write(Activity(jobs_done=9))  # nobody said who sits there
    board.writer(2, Activity).write(Activity(jobs_done=7))
    assert board.read_taken() == [board.read(slot) for slot in (0, 2, 3)]
    board.writer(0, Identity).write(written[0]._replace(state=SlotState.EMPTY))
    assert board.read_taken() == [(written[2], Activity(jobs_done=7), None), (written[3], None, None)]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), identities | activities | gauges), max_size=30))
def test_each_slot_shows_what_was_last_written_to_it(writes):
    board = Board.create(4)
    writers = {(slot, group): board.writer(slot, group) for slot in range(4) for group in (Identity, Activity, Gauges)}
    last = {}
    for slot, value in writes:
        writers[slot, type(value)].write(value)
        last[slot, type(value)] = value
    for slot in range(4):
        assert board.read(slot) == tuple(last.get((slot, group)) for group in (Identity, Activity, Gauges))
    board.close()


def test_a_beat_changes_the_heartbeat_only(board):
    writer = board.writer(1, Activity)
    writer.beat(5)
    assert board.read(1).activity == Activity(heartbeat_mono_ns=5)
    state = Activity(6, job_id=7, epoch=8, progress=0.5, jobs_running=1, spares=tuple(range(8)))
    writer.write(state)
    for mono_ns in range(10, 15):
        writer.beat(mono_ns)
        assert board.read(1).activity == state._replace(heartbeat_mono_ns=mono_ns)
    assert board.read(0) == board.read(2) == (None, None, None)


def test_the_next_writer_goes_on_from_a_torn_copy(board):
    former = board.writer(0, Activity)
    for number in range(1, 4):
        former.write(Activity(number))
    at = layout.ACTIVITY.copy_at(0, 3)
    board._memory[at + 20] ^= 0xFF  # write 3 was cut short
    assert board.read(0).activity == Activity(2)
    board.writer(0, Activity).write(Activity(4))
    assert board.read(0).activity == Activity(4)
    board._memory[at + 20] ^= 0xFF  # cut short again
    assert board.read(0).activity == Activity(2), "it must have replaced the torn copy, not the whole one"


def test_what_a_dead_generation_left_is_not_taken_for_the_new_one(board):
    identity = board.writer(0, Identity)
    identity.write(Identity(ChildKind.WORKER, "gpu0", started_mono_ns=100))
    assert board.read(0).own_activity is None
    activity = board.writer(0, Activity)
    activity.beat(150)
    assert board.read(0).own_activity == Activity(150)
    identity.write(Identity(ChildKind.WORKER, "gpu0", started_mono_ns=200))
    assert board.read(0).own_activity is None
    assert board.read(0).activity == Activity(150), "it stays readable as evidence"


def test_a_gauge_that_nobody_measured_says_so(board):
    board.writer(0, Gauges).write(Gauges(at_mono_ns=1, temperature_c=40))
    found = board.read(0).gauges
    assert (found.temperature_c, found.power_mw) == (40, UNKNOWN)


def test_wrong_slots_and_numbers_are_refused(board):
    for slot in (-1, 4):
        with pytest.raises(IndexError, match="not on a board of 4"):
            board.read(slot)
        with pytest.raises(IndexError, match="not on a board of 4"):
            board.writer(slot, Activity)
    with pytest.raises(ValueError, match="at least one"):
        Board.create(0)
    writer = board.writer(0, Activity)
    writer.write(Activity(1))
    with pytest.raises(layout.struct.error):
        writer.write(Activity(-1))
    assert board.read(0).activity == Activity(1)


def test_another_process_attaches_by_descriptor_alone(board):
    program = (
        "import sys; from empd.memory.board import *; board = Board.attach(int(sys.argv[1])); "
        "print(board.slots, board.read(2).identity.name); board.writer(2, Activity).beat(77); board.close()"
    )
    board.writer(2, Identity).write(Identity(ChildKind.WEB, "web"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(board.fd)],
        pass_fds=[board.fd],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["4", "web"]
    assert board.read(2).activity == Activity(77)


def test_attaching_leaves_the_descriptor_to_its_owner(board):
    Board.attach(board.fd).close()
    os.fstat(board.fd)
    board.close()
    board.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(board.fd)


def test_nobody_can_shrink_the_board_under_its_readers(board):
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, 0)


@pytest.mark.parametrize(
    "content", [b"", b"EMPD", b"x" * 4096, layout.HEADER.pack(layout.MAGIC, layout.VERSION + 1, 4)]
)
def test_what_is_not_a_board_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file, pytest.raises(ValueError, match="not a board"):
        Board.attach(file.fileno())


# --- under SIGKILL -----------------------------------------------------------------------------------------------


def environment():
    root = Path(layout.__file__).parents[2]
    return os.environ | {"PYTHONPATH": str(root)}


def test_ten_thousand_kills_in_mid_write_leave_every_slot_readable():
    killer = Path(__file__).with_name("memory_killer.py")
    runs = [
        subprocess.Popen(
            [sys.executable, str(killer), str(KILLS // KILLERS), str(seed)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(KILLERS)
    ]
    outcomes = [(*run.communicate(timeout=280), run.returncode) for run in runs]
    assert [code for _, _, code in outcomes] == [0] * KILLERS, "".join(errors for _, errors, _ in outcomes)
    reports = [json.loads(output) for output, _, _ in outcomes]
    assert sum(report["kills"] for report in reports) == KILLS
    assert all(report["writes"] >= 3 * report["kills"] for report in reports)
