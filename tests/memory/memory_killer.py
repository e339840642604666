"""Forks children that write their slots as fast as they can, and kills each at a random moment.

Run as a program of its own (`memory_killer.py KILLS SEED`), so that forks are cheap: prints one line of JSON.
Every value written is derived from one number, and that number is the count of writes to its group: a group
that mixes two writes, falls back, or whose next writer starts anew cannot pass `check`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import sys
import time

from empd.lifecycle import ChildKind, Exit
from empd.memory import board as boards
from empd.memory import layout
from empd.memory.board import Activity, Board, Gauges, Identity, SlotState

SLOTS = 4
DELAY_MAX_S = 0.0002
START_LIMIT_S = 30.0
GROUPS = (layout.IDENTITY, layout.ACTIVITY, layout.GAUGES)


def identity_of(number: int) -> Identity:
    return Identity(
        kind=ChildKind.WORKER,
        name=f"gpu{number}",
        pid=number,
        generation=number,
        state=SlotState(number % len(SlotState)),
        started_mono_ns=number,
        restarts=number,
        last_exit=Exit(number % len(Exit)),
        last_wait_status=-number,
        device_uuid=f"GPU-{number:044x}",
        virtual=bool(number % 2),
    )


def activity_of(number: int) -> Activity:
    return Activity(*[number] * 3, float(number), *[number] * 5, spares=(number,) * layout.SPARES)


def gauges_of(number: int) -> Gauges:
    return Gauges(*[number] * len(Gauges._fields))


def write_for_ever(board: Board, slot: int, numbers: list[int], started_fd: int) -> None:
    writers = (board.writer(slot, Identity), board.writer(slot, Activity), board.writer(slot, Gauges))
    makers = (identity_of, activity_of, gauges_of)
    for count in itertools.count(1):
        for writer, make, number in zip(writers, makers, numbers, strict=True):
            writer.write(make(number + count))
        if count == 1:
            os.eventfd_write(started_fd, 1)


def numbers_in(board: Board, slot: int) -> list[int]:
    """The number in each group; fails when a group cannot be read or is not all of one number."""
    view = board.read(slot)
    if view == (None, None, None):
        return [0, 0, 0]
    assert view.identity is not None, "identity cannot be read"
    assert view.activity is not None, "activity cannot be read"
    assert view.gauges is not None, "gauges cannot be read"
    numbers = [view.identity.generation, view.activity.epoch, view.gauges.flags]
    assert view == (identity_of(numbers[0]), activity_of(numbers[1]), gauges_of(numbers[2])), f"mixed: {view}"
    return numbers


def check(board: Board, slot: int, seen: list[int]) -> list[int]:
    """What a dead child left: readable, not older than what was seen, numbered without a gap since the first."""
    numbers = numbers_in(board, slot)
    assert all(number >= before for number, before in zip(numbers, seen, strict=True)), f"{numbers} after {seen}"
    for group, number in zip(GROUPS, numbers, strict=True):
        found = boards._newest(board._memory, group, slot)
        assert found is not None
        assert found[0] == number, f"write {found[0]} carries number {number}"
    return numbers


def torn_copies(board: Board, slot: int) -> int:
    """Copies in the slot that were written but are not whole."""
    torn = 0
    for group in GROUPS:
        for sequence in (0, 1):
            at = group.copy_at(slot, sequence)
            copy = board._memory[at : at + group.copy_bytes]
            alone = copy + bytes(group.pair_bytes - len(copy))
            torn += any(copy) and group.newest(alone) is None
    return torn


def fork_writer(board: Board, slot: int, numbers: list[int], started_fd: int) -> int:
    pid = os.fork()
    if pid == 0:
        write_for_ever(board, slot, numbers, started_fd)
    return pid


def wait_for_start(started_fd: int) -> None:
    assert select.select([started_fd], [], [], START_LIMIT_S)[0], "the writer never wrote"
    os.eventfd_read(started_fd)


def main(kills: int, seed: int) -> None:
    chance = random.Random(seed)
    board = Board.create(SLOTS)
    left = [[0, 0, 0] for _ in range(SLOTS)]
    started_fd = os.eventfd(0)
    torn = 0
    for kill in range(kills):
        slot = kill % SLOTS
        pid = fork_writer(board, slot, left[slot], started_fd)
        try:
            wait_for_start(started_fd)
            time.sleep(chance.random() * DELAY_MAX_S)  # the random moment
            seen = numbers_in(board, slot)
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        torn += torn_copies(board, slot)
        left[slot] = check(board, slot, seen)
    print(json.dumps({"kills": kills, "torn": torn, "writes": sum(map(sum, left))}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
