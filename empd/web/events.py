"""Live events: one feed from the journal and the telemetry socket, fanned out to the event streams.

    broker ── Subscribe ──▶ Feed ──▶ Hub ──▶ Stream, Stream, …     ids are journal rows: resumable
    workers ── PUSH ──────────────────▲                            progress, log, partial: no id

The feed runs only while a stream is open, so that rows are not even sent when nobody listens. A stream that
falls behind is ended, and its client comes back with Last-Event-ID.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

from empd.errors import EmpdError
from empd.web import render
from empd.web.duty import end
from empd.web.gateway import Gateway
from empd.web.transitions import KINDS, Row, Transition, of_row
from empd.wire.frames import Reset, Rows

CONSUMER = "web"
STREAM_EVENTS_MAX = 4_000
STREAMS_MAX = 256
RESTART_S = 0.5


class Event(NamedTuple):
    """One event of a stream. `seq`: its journal row, 0 when it is from none. `last`: it is the row's last for this
    stream, so that the row counts as seen after it."""

    seq: int
    name: str
    data: bytes
    last: bool = True

    def encode(self) -> bytes:
        """The event's bytes on the wire."""
        head = b"id: %d\n" % self.seq if self.seq and self.last else b""
        return b"%sevent: %s\ndata: %s\n\n" % (head, self.name.encode(), self.data)


class Stream:
    """One listener's events, of one job or (None) of all, kept until it takes them."""

    def __init__(self, job_id: int | None) -> None:
        self.job_id = job_id
        self.overrun = False
        self.closed = False
        self._events: deque[Event] = deque()
        self._more = asyncio.Event()

    def add(self, event: Event) -> None:
        """Keeps an event; past the bound the stream ends (what is lossy is only left out)."""
        if len(self._events) >= STREAM_EVENTS_MAX:
            if not event.seq:
                return
            self.overrun = True
        else:
            self._events.append(event)
        self._more.set()

    def close(self) -> None:
        """No more events will come."""
        self.closed = True
        self._more.set()

    async def take(self, timeout_s: float) -> list[Event] | None:
        """All events that have come, waiting for the first; empty after the time-out, None when the stream is over."""
        if not self._events and not self.overrun and not self.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._more.wait()
        self._more.clear()
        events = list(self._events)
        self._events.clear()
        if not events and (self.overrun or self.closed):
            return None
        return events


class Hub:
    """The open streams, by what they listen to."""

    def __init__(self) -> None:
        self._of_job: dict[int, set[Stream]] = {}
        self._of_all: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._of_all) + sum(map(len, self._of_job.values()))

    def open(self, job_id: int | None) -> Stream:
        """A new stream; it gets what is published from now on."""
        stream = Stream(job_id)
        if job_id is None:
            self._of_all.add(stream)
        else:
            self._of_job.setdefault(job_id, set()).add(stream)
        return stream

    def leave(self, stream: Stream) -> None:
        """The stream's listener is gone. Leaving twice is fine."""
        if stream.job_id is None:
            self._of_all.discard(stream)
            return
        streams = self._of_job.get(stream.job_id, set())
        streams.discard(stream)
        if not streams:
            self._of_job.pop(stream.job_id, None)

    def wants(self, job_id: int) -> bool:
        """Whether anybody listens to this job."""
        return bool(self._of_all) or job_id in self._of_job

    def publish(self, seq: int, transitions: list[Transition]) -> None:
        """Tells the transitions of one journal row. The row's id goes with the last event that a stream gets of it."""
        if self._of_all:
            for event in events_of(seq, transitions):
                for stream in self._of_all:
                    stream.add(event)
        if self._of_job:
            wanted: dict[int, list[Transition]] = {}
            for transition in transitions:
                if transition.job_id in self._of_job:
                    wanted.setdefault(transition.job_id, []).append(transition)
            for job_id, its in wanted.items():
                for event in events_of(seq, its):
                    for stream in self._of_job[job_id]:
                        stream.add(event)

    def publish_lossy(self, job_id: int, event: Event) -> None:
        """Tells what may be lost: progress, log lines, partial results."""
        for stream in (*self._of_all, *self._of_job.get(job_id, ())):
            stream.add(event)

    def close(self) -> None:
        """Ends every stream."""
        for stream in (*self._of_all, *(each for streams in self._of_job.values() for each in streams)):
            stream.close()


def events_of(seq: int, transitions: Iterable[Transition]) -> list[Event]:
    """The events of one row for one stream; a stream that is cut inside a row gets the whole row again."""
    events = [Event(seq, each.name, render.dumps(each.data), last=False) for each in transitions]
    if events:
        events[-1] = events[-1]._replace(last=True)
    return events


class Feed:
    """Follows the journal while streams are open. `seq`: the last row that the hub was told."""

    def __init__(self, gateway: Gateway, hub: Hub) -> None:
        self._gateway = gateway
        self._hub = hub
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Lock()
        self.seq = 0
        self.damaged_rows = 0

    async def ensure(self) -> None:
        """Starts following from the journal's end, unless it does already. Raises NotRunning."""
        async with self._started:
            if self._task is None or self._task.done():
                self.seq = await self._gateway.head_seq()
                self._task = asyncio.create_task(self._follow(), name="feed")

    async def rest(self) -> None:
        """Stops when no stream is open."""
        async with self._started:
            if not len(self._hub):
                await self.stop()

    async def stop(self) -> None:
        """Stops. Stopping twice is fine."""
        task, self._task = self._task, None
        await end(task)

    async def replay(self, after_seq: int, through_seq: int, job_id: int | None) -> AsyncGenerator[Event, None]:
        """The events in the rows after `after_seq` up to `through_seq`. Where rows are gone, first a `reset`."""
        if after_seq >= through_seq:
            return
        # Rows of every kind, so that the one numbered `through_seq` is seen whatever it says.
        async with contextlib.aclosing(self._gateway.replay(after_seq + 1)) as frames:
            async for frame in frames:
                if isinstance(frame, Reset):
                    yield Event(0, "reset", b'{"event":"reset"}')
                    if frame.first_seq > through_seq:
                        return
                    continue
                for row in frame.rows:
                    if row[0] <= through_seq:
                        its = [each for each in self._decode(row) if job_id is None or each.job_id == job_id]
                        for event in events_of(row[0], its):
                            yield event
                    if row[0] >= through_seq:
                        return

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(EmpdError):
                async with contextlib.aclosing(self._gateway.follow(CONSUMER, self.seq + 1, KINDS)) as frames:
                    async for frame in frames:
                        for row in frame.rows if isinstance(frame, Rows) else ():
                            self._tell(row)
            await asyncio.sleep(RESTART_S)

    def _tell(self, row: Row) -> None:
        self.seq = row[0]
        self._hub.publish(row[0], self._decode(row))

    def _decode(self, row: Row) -> list[Transition]:
        try:
            return of_row(row)
        except (ValueError, EmpdError):
            self.damaged_rows += 1
            return []
