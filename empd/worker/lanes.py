"""Where assigned jobs run: lanes, long-lived tasks that take one job after the other from one queue.

A job has no task of its own. A lane awaits the connector directly, so jobs that need not wait finish one after the
other without the event loop. Only when a lane has to wait and jobs are left, others are woken, twice as many each
time, up to the worker's concurrency.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

from empd.connectors.context import Context, JobDetails, JobView
from empd.wire.frames import AssignedJob
from empd.worker.hosted import Hosted
from empd.worker.outbox import Claim
from empd.worker.outcome import Outcomes

TURN_NS_MAX = 5_000_000
"""When lanes have had the event loop for this long, one lets it turn to others."""

CLOSE_S_MAX = 0.2

Entry = tuple[Hosted, JobDetails, float, AssignedJob]


class Lane:
    """One lane: the job it runs now, if any, and its task."""

    __slots__ = ("context", "finishing", "hosted", "task", "waiter")

    def __init__(self) -> None:
        self.context: Context | None = None
        self.hosted: Hosted | None = None
        self.finishing = False
        self.task: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None


class Lanes:
    """At most `concurrency` lanes, and the queue before them."""

    def __init__(self, concurrency: int, outcomes: Outcomes, on_lost: Callable[[BaseException | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._concurrency = concurrency
        self._outcomes = outcomes
        self._on_lost = on_lost
        self._queue: deque[Entry] = deque()
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._spreading = False
        self._wave = 1
        self._pausing = 0
        self._turn_ns = 0
        self._closed = False

    def add(self, entries: Iterable[Entry]) -> None:
        """Queues jobs and sees that a lane takes them."""
        self._queue.extend(entries)
        if self._queue and not self._spreading:
            self._wave = 1
            self._spread()

    def _spread(self) -> None:
        """Wakes lanes while jobs are left; looks again after they had their turn."""
        self._spreading = self._pausing > 0 and bool(self._queue)
        if self._spreading:
            # A lane let the loop have a turn and goes on by itself: more lanes would only make the turns longer.
            self._loop.call_soon(self._spread)
            return
        missing = min(len(self._queue), self._wave)
        while missing and not self._closed and (self._idle or len(self._lanes) < self._concurrency):
            if self._idle:
                self._wake(self._idle.pop())
            else:
                self._begin()
            missing -= 1
            self._spreading = True
        if self._spreading:
            self._wave *= 2
            self._loop.call_soon(self._spread)

    def _wake(self, lane: Lane) -> None:
        if lane.waiter is not None and not lane.waiter.done():
            lane.waiter.set_result(None)

    def _begin(self) -> None:
        lane = Lane()
        self._lanes.append(lane)
        lane.task = self._loop.create_task(self._run(lane))
        lane.task.add_done_callback(lambda task: self._ended(lane, task))

    def _ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        self._lanes.remove(lane)
        if not self._closed:
            # A lane ends only with `close`; whatever else ended it must not leave its queue without lanes.
            self._on_lost(task.exception() if not task.cancelled() else asyncio.CancelledError())
            self.add(())

    async def _run(self, lane: Lane) -> None:
        """A lane's life. The path of a job that ends well without waiting is all in here; nothing slow may join it."""
        queue, outcomes, clock = self._queue, self._outcomes, time.monotonic_ns
        outbox, encode, note = outcomes.outbox, outcomes.encode, outcomes.note
        while not self._closed:
            now_ns = clock()
            self._turn_ns = self._turn_ns or self._begin_turn(now_ns)
            while queue:
                hosted, details, timeout_s, assigned = queue.popleft()
                job = JobView(assigned.id, assigned.epoch, assigned.attempt, details, assigned.payload)
                started_ns = now_ns
                context = Context(hosted.port, job, started_ns)
                if timeout_s > 0:
                    context.timeout_s = timeout_s
                process = hosted.process
                if assigned.checkpoint is not None:
                    context.last_checkpoint = assigned.checkpoint
                    process = hosted.resume
                lane.context, lane.hosted = context, hosted
                meter = hosted.meter
                meter.active_jobs += 1
                try:
                    note(started_ns)
                    value = await process(job, context)
                    lane.finishing = True
                    carried = encode(value)
                    if carried is None or context.stop_reason or context.assets_used is not None:
                        await outcomes.finish(hosted, context, value)
                    else:
                        outbox.completed((assigned.id, assigned.epoch), carried, None)
                        hosted.tally.completed += 1
                except BaseException as error:  # foreign code: even SystemExit must end the job only, not the worker
                    if self._closed or (isinstance(error, GeneratorExit) and not self._loop.is_running()):
                        raise
                    outcomes.failed(hosted, context, error)
                finally:
                    meter.active_jobs -= 1
                    lane.context, lane.finishing = None, False
                now_ns = clock()
                hosted.tally.ran(now_ns - started_ns)
                if context.stop_reason:
                    _forget_cancel(lane)
                if now_ns - (self._turn_ns or self._begin_turn(now_ns)) > TURN_NS_MAX:
                    outbox.flush()
                    self._pausing += 1
                    try:
                        await asyncio.sleep(0)
                    finally:
                        self._pausing -= 1
                    now_ns = clock()
                    self._turn_ns = self._turn_ns or self._begin_turn(now_ns)
            if len(self._lanes) - len(self._idle) == 1:
                outbox.flush()  # all others rest: nothing can join this frame, so it need not wait for the turn's end
            note(now_ns)
            lane.waiter = self._loop.create_future()
            self._idle.append(lane)
            await lane.waiter

    def _begin_turn(self, now_ns: int) -> int:
        """Lanes have the loop from now on until it turns to others; a job that waited for something gave it up."""
        self._turn_ns = now_ns
        self._loop.call_soon(self._end_turn)
        return now_ns

    def _end_turn(self) -> None:
        self._turn_ns = 0

    @property
    def busy(self) -> int:
        """Jobs that run or wait for a lane."""
        return len(self._queue) + sum(lane.context is not None for lane in self._lanes)

    @property
    def running(self) -> list[Context]:
        """The jobs that run now."""
        return [lane.context for lane in self._lanes if lane.context is not None]

    def held(self) -> Iterable[Claim]:
        """Claims of all jobs that run or wait."""
        for entry in self._queue:
            yield entry[3].id, entry[3].epoch
        for context in self.running:
            yield context.job.id, context.job.epoch

    def stop(self, claim: Claim, reason: str) -> bool:
        """Tells one job to stop; False when it is not here. It is reported when it has stopped."""
        for lane in self._lanes:
            if lane.context is not None and (lane.context.job.id, lane.context.job.epoch) == claim:
                self._stop_running(lane, lane.context, reason)
                return True
        for entry in self._queue:
            if (entry[3].id, entry[3].epoch) == claim:
                self._queue.remove(entry)
                self._outcomes.never_ran(entry[0], claim, reason)
                return True
        return False

    def stop_all(self, reason: str) -> None:
        """Tells every job to stop."""
        for claim in list(self.held()):
            self.stop(claim, reason)

    def _stop_running(self, lane: Lane, context: Context, reason: str) -> None:
        again = context.cancelled
        if again and (reason != "abandon" or context.stop_reason == "abandon"):
            return
        context.mark_stopping(reason)
        hosted = lane.hosted
        if again or lane.finishing or hosted is None or lane.task is None:
            return
        if hosted.cancellable is None:
            lane.task.cancel()
            return
        hosted.interrupt(context, lambda: self._cancel_late(lane, context))

    def _cancel_late(self, lane: Lane, context: Context) -> None:
        """The connector's own cancel did not end the job in its grace."""
        if lane.context is context and not lane.finishing and lane.task is not None:
            lane.task.cancel()

    async def close(self) -> None:
        """Ends all lanes; jobs still running are cancelled and not reported."""
        self._closed = True
        self._queue.clear()
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S_MAX)


def _forget_cancel(lane: Lane) -> None:
    if lane.task is not None:
        while lane.task.cancelling():
            lane.task.uncancel()
