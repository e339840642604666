"""The memory that content on its way takes, of all that one worker saves at the same time."""

from __future__ import annotations

import asyncio
from collections import deque

ROOM_BYTES_MAX = 36 << 20
"""Enough for one upload at nearly full speed. With the spare, and with what clients and sockets copy, a worker stays
below 64 MiB."""


class Room:
    """So many bytes; who has waited longest for some gets them first.

    Who waits in `take` holds nothing but what gets free by itself (blocks that are being sent). Who needs more while it
    holds what does not (an asset's first block, by which its kind is known) asks `take_now`, and where there is none
    waits for `spare`: there is one, beside the bytes, and who has it waits for nobody. So nobody waits for ever.
    """

    def __init__(self, bytes_max: int = ROOM_BYTES_MAX) -> None:
        self._free_bytes = bytes_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.spare = asyncio.Lock()

    async def take(self, count: int) -> None:
        """Returns when these bytes are the caller's."""
        if self.take_now(count):
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((count, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._serve()  # it may have been in the way of the next
            else:
                self.give(count)  # granted before it was cancelled
            raise

    def take_now(self, count: int) -> bool:
        """The same without waiting; False where there is not so much, or others wait."""
        if self._waiting or self._free_bytes < count:
            return False
        self._free_bytes -= count
        return True

    def give(self, count: int) -> None:
        """They are free again."""
        self._free_bytes += count
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            count, granted = self._waiting[0]
            if not granted.cancelled():
                if self._free_bytes < count:
                    return
                self._free_bytes -= count
                granted.set_result(None)
            self._waiting.popleft()


class Share:
    """What one block has of the room, or the spare."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0
        self.is_spare = False

    async def take(self, count: int) -> None:
        """See Room.take."""
        await self._room.take(count)
        self._bytes += count

    def take_now(self, count: int) -> bool:
        """See Room.take_now."""
        taken = self._room.take_now(count)
        self._bytes += count if taken else 0
        return taken

    async def take_spare(self) -> None:
        """See Room."""
        await self._room.spare.acquire()
        self.is_spare = True

    def keep(self, count: int) -> None:
        """Gives back all but so many bytes; of the spare there is no part."""
        if self._bytes > count:
            self._room.give(self._bytes - count)
            self._bytes = count

    def give_all(self) -> None:
        """Gives everything back; called again it does nothing."""
        self.keep(0)
        if self.is_spare:
            self.is_spare = False
            self._room.spare.release()
