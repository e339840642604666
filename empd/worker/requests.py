"""Numbered questions to the broker (checkpoints, state) and their answers, across reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from empd.connectors.failures import StateConflict
from empd.errors import FailureClass
from empd.wire.frames import Checkpoint, Error, Frame, StateGet, StateSet, StateValue, Stored


class _Open(NamedTuple):
    frame: Frame
    answer: asyncio.Future[Stored | StateValue]


class Requests:
    """Questions that are not answered yet; `send` takes a frame, `resend` repeats all after a reconnect."""

    def __init__(self, send: Callable[[Frame], bool]) -> None:
        self._send = send
        self._number = 0
        self._open: dict[int, _Open] = {}
        self._repeated: set[int] = set()

    async def checkpoint(self, job_id: int, epoch: int, data: bytes, doubt: str = "") -> None:
        """Returns when the checkpoint is durable. Raises StateConflict when the attempt is stale."""
        await self._ask(lambda number: Checkpoint(number, job_id, epoch, data, doubt))

    async def state_get(self, key: str) -> tuple[int, bytes]:
        """Version (0: none) and bytes of a connector's state."""
        answer = await self._ask(lambda number: StateGet(number, key))
        return (answer.version, answer.data) if isinstance(answer, StateValue) else (0, b"")

    async def state_set(self, claim: tuple[int, int], key: str, data: bytes, expected_version: int) -> int:
        """The state's new version. Raises StateConflict when the version or the attempt is stale."""
        number = self._number + 1
        try:
            answer = await self._ask(lambda number: StateSet(number, *claim, key, expected_version, data))
        except StateConflict:
            if number not in self._repeated:
                raise
            # The first asking may have been stored, and only its answer lost with the connection.
            self._repeated.discard(number)
            version, found = await self.state_get(key)
            if version == expected_version + 1 and found == data:
                return version
            raise
        return int(answer.version)

    def answered(self, frame: Stored | StateValue) -> None:
        """An answer has come."""
        waiting = self._open.get(frame.request)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(frame)

    def refused(self, frame: Error) -> bool:
        """An error has come; False when it belongs to no question."""
        waiting = self._open.get(frame.request)
        if waiting is None:
            return False
        if not waiting.answer.done():
            waiting.answer.set_exception(StateConflict(frame.message, failure=_failure(frame.failure)))
        return True

    def resend(self) -> None:
        """Asks again all that is unanswered."""
        for number, waiting in self._open.items():
            self._repeated.add(number)
            self._send(waiting.frame)

    async def _ask(self, frame_of: Callable[[int], Frame]) -> Any:
        self._number += 1
        number = self._number
        frame = frame_of(number)
        answer: asyncio.Future[Stored | StateValue] = asyncio.get_running_loop().create_future()
        self._open[number] = _Open(frame, answer)
        self._send(frame)
        try:
            return await answer
        finally:
            del self._open[number]
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._repeated.discard(number)


def _failure(name: str) -> FailureClass:
    return FailureClass(name) if name in FailureClass.__members__.values() else FailureClass.INTERNAL
