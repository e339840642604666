"""The read socket of history: who finds a job unknown to the broker asks here.

An answer is one frame, so it must fit into one: results that are too many move into volatile blobs first.
"""

from __future__ import annotations

import asyncio

import zmq

from empd.errors import EmpdError, ProtocolError
from empd.memory.arena import Arena
from empd.payload import FRAME_BYTES_MAX, BlobRef
from empd.result import FinishedGroup, FinishedJob
from empd.store.history import History
from empd.web.archive import Archive
from empd.web.inlet import Inlet
from empd.web.records import lookup, to_groups
from empd.wire import codec
from empd.wire.frames import HistoryAnswer, HistoryAsk

IDS_MAX = 5_000
ASKS_MAX = 256
QUEUE_MAX = 1_000
MOVE_BYTES_MIN = 256
EVIDENCE_CHARS_KEPT = 100


class HistorySocket:
    """Answers `HistoryAsk` on a ROUTER. `bad_frames` counts what was no question, and what came while too many ran."""

    def __init__(self, endpoint: str, archive: Archive, arena: Arena) -> None:
        self._archive = archive
        self._arena = arena
        self._asks: set[asyncio.Task[None]] = set()
        self.bad_frames = 0
        self.failed_asks = 0
        self._inlet = Inlet(endpoint, zmq.ROUTER, self._take, QUEUE_MAX)

    def close(self) -> None:
        """Stops answering. Closing twice is fine."""
        for ask in self._asks:
            ask.cancel()
        self._inlet.close()

    def _take(self, parts: list[bytes]) -> None:
        try:
            frame = codec.decode_history_frame(parts[-1])
        except ProtocolError:
            self.bad_frames += 1
            return
        if not isinstance(frame, HistoryAsk) or len(frame.ids) > IDS_MAX or len(self._asks) >= ASKS_MAX:
            self.bad_frames += 1
            return
        # Answers go back the way the question came: a REQ's envelope too.
        task = asyncio.create_task(self._answer(parts[:-1], frame))
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    async def _answer(self, envelope: list[bytes], ask: HistoryAsk) -> None:
        try:
            data = await self._archive.call(lambda history: answer(history, ask, self._arena))
        except EmpdError:
            # No answer is an answer: the asker's time-out tells it to ask again.
            self.failed_asks += 1
            return
        self._inlet.send([*envelope, data])


def answer(history: History, ask: HistoryAsk, arena: Arena) -> bytes:
    """The encoded answer, never larger than a frame."""
    found, expired = lookup(history, ask.ids)
    frame = HistoryAnswer(ask.request, history.cursor, to_groups(found), expired)
    data = codec.encode(frame)
    if len(data) > FRAME_BYTES_MAX:
        _move_results(frame.groups, arena, len(data) - FRAME_BYTES_MAX)
        data = codec.encode(frame)
    if len(data) > FRAME_BYTES_MAX:
        for error in (job.error for group in frame.groups for job in group.jobs):
            if error is not None:
                error.evidence = error.evidence[:EVIDENCE_CHARS_KEPT]
        data = codec.encode(frame)
    return data


def _move_results(groups: list[FinishedGroup], arena: Arena, excess_bytes: int) -> None:
    """Puts the largest inline results into blobs until the answer is small enough."""
    inline = [job for group in groups for job in group.jobs if isinstance(job.result, bytes)]
    inline.sort(key=_result_bytes, reverse=True)
    for job in inline:
        size = _result_bytes(job)
        if excess_bytes <= 0 or size < MOVE_BYTES_MIN:
            return
        if isinstance(job.result, bytes):
            job.result = arena.put(job.result, durable=False, encoding="msgpack")
            excess_bytes -= size - 100


def _result_bytes(job: FinishedJob) -> int:
    return 0 if job.result is None or isinstance(job.result, BlobRef) else len(job.result)
