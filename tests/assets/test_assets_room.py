"""The memory that all uploads of a worker share: a bound, first come first served, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from empd.asset import AssetConfig, AssetContent, AssetRef
from empd.assets.content import Intake, take
from empd.assets.naming import Mark
from empd.assets.room import Room
from empd.assets.saver import Saver

KIB, MIB = 1 << 10, 1 << 20
WAIT_S = 60.0
"""Only a wait for ever takes so long."""


async def is_whole(room: Room, bytes_max: int) -> bool:
    """Everything has been given back."""
    return room.take_now(bytes_max) and not room.spare.locked()


async def waiting(*tasks: asyncio.Task[None]) -> None:
    """Every task has come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def test_who_waited_longest_is_served_first_and_nobody_overtakes() -> None:
    async def run() -> None:
        room = Room(100)
        await room.take(100)
        large, small = asyncio.create_task(room.take(80)), asyncio.create_task(room.take(10))
        await waiting(large, small)
        room.give(50)
        assert not room.take_now(10), "others wait"
        await waiting(large, small)
        room.give(40)
        await asyncio.wait_for(asyncio.gather(large, small), WAIT_S)
        room.give(100)
        assert await is_whole(room, 100)

    asyncio.run(run())


@pytest.mark.parametrize("granted_before", [False, True])
def test_who_is_cancelled_while_it_waits_keeps_nothing_and_holds_up_nobody(granted_before: bool) -> None:
    async def run() -> None:
        room = Room(100)
        await room.take(100)
        large, small = asyncio.create_task(room.take(80)), asyncio.create_task(room.take(10))
        await waiting(large, small)
        room.give(90 if granted_before else 10)
        large.cancel()
        await asyncio.wait_for(small, WAIT_S)
        with pytest.raises(asyncio.CancelledError):
            await large
        room.give(20 if granted_before else 100)
        assert await is_whole(room, 100)

    asyncio.run(run())


async def blocks(intake: Intake, count: int) -> list[bytes]:
    """All of the content, as it comes."""
    found = []
    while not intake.ended:
        block = await intake.block(count)
        found.append(bytes(block.data))
        block.drop()
    return found


def test_without_room_the_first_block_is_as_long_as_ever_and_later_ones_are_shorter() -> None:
    data = os.urandom(20 * MIB)

    async def run() -> None:
        room = Room(3 * MIB)
        intake = await take(data, room)
        found = await blocks(intake, 8 * MIB)
        assert b"".join(found) == data
        assert len(found[0]) == 8 * MIB
        assert {len(block) for block in found[1:-1]} == {2 * MIB}
        assert intake.sha256 == hashlib.sha256(data).hexdigest()
        assert await is_whole(room, 3 * MIB)

    asyncio.run(run())


def test_what_is_closed_in_the_middle_gives_everything_back() -> None:
    async def run() -> None:
        room = Room(3 * MIB)
        intake = await take(bytes(20 * MIB), room)
        first, second = await intake.block(8 * MIB), await intake.block(8 * MIB)
        assert first.data
        assert second.data
        intake.close()
        first.drop()
        assert await is_whole(room, 3 * MIB)

    asyncio.run(run())


class Slow:
    """Content that stops after its beginning until `go`."""

    def __init__(self, beginning: bytes) -> None:
        self.beginning = beginning
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.beginning
        self.begun.set()
        await self.go.wait()


async def saved_at_once(saver: Saver, *contents: AssetContent) -> list[AssetRef]:
    """Each content saved by a job of its own, all at the same time."""
    jobs = [saver.bind(Mark("0123456789abcdef0123456789abcdef", number, 3), None) for number in range(len(contents))]
    async with asyncio.timeout(WAIT_S):
        return await asyncio.gather(*(job.save(content) for job, content in zip(jobs, contents, strict=True)))


def test_many_at_once_share_a_room_far_too_small_for_them(tmp_path: Path) -> None:
    contents = [os.urandom(3 * MIB + number) for number in range(20)]

    async def run() -> None:
        room = Room(MIB)
        saver = Saver(AssetConfig(), tmp_path, 0, room)
        refs = await saved_at_once(saver, *contents)
        assert [(tmp_path / ref.name).read_bytes() for ref in refs] == contents
        assert await is_whole(room, MIB)

    asyncio.run(run())


def test_content_that_comes_slowly_has_the_room_that_it_fills_and_no_more(tmp_path: Path) -> None:
    async def run() -> None:
        room = Room(8 * MIB)
        saver = Saver(AssetConfig(), tmp_path, 0, room)
        slow = [Slow(bytes(300 * KIB)) for _ in range(10)]
        saving = asyncio.create_task(saved_at_once(saver, *(each.chunks() for each in slow)))
        await asyncio.gather(*(each.begun.wait() for each in slow))
        job = saver.bind(Mark("0123456789abcdef0123456789abcdef", 99, 3), None)
        await asyncio.wait_for(job.save(bytes(5 * MIB)), WAIT_S)
        assert not saving.done()
        for each in slow:
            each.go.set()
        await saving
        assert await is_whole(room, 8 * MIB)

    asyncio.run(run())


def test_saves_that_are_cancelled_leave_the_room_to_the_others(tmp_path: Path) -> None:
    async def run() -> None:
        room = Room(MIB)
        saver = Saver(AssetConfig(), tmp_path, 0, room)
        slow = [Slow(bytes(300 * KIB)) for _ in range(10)]
        saving = asyncio.create_task(saved_at_once(saver, *(each.chunks() for each in slow)))
        await waiting(saving)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert await is_whole(room, MIB)

    asyncio.run(run())
