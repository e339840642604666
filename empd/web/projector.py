"""Keeps history: follows the journal's RESULTS rows and writes them in bulk.

    broker ── Rows (kinds: RESULTS) ──▶ transactions of a bounded size ──▶ CursorAck

The row numbers are written in the same transaction as the rows, so a crash anywhere repeats nothing and loses
nothing: after a restart it goes on behind the last row written. The acknowledgement only lets the broker trim.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Sequence

from empd.clock import NS_PER_S
from empd.connectors.tracing import EndedJob, Tracer
from empd.errors import EmpdError
from empd.job import Outcome
from empd.queue.rows import Kind, decode_body
from empd.result import Results
from empd.store.history import History, HistoryError
from empd.store.record import Ended
from empd.web import records, render
from empd.web.archive import Archive
from empd.web.duty import Duty
from empd.web.gateway import Gateway
from empd.web.series import Tally
from empd.web.transitions import Row
from empd.wire.frames import Reset

CONSUMER = "history"
RESTART_S = 0.5
JOBS_PER_TRANSACTION = 2_000
"""After so many the transaction ends with its journal row; whoever asks history something else gets a turn."""

_COMPLETED = int(Outcome.COMPLETED)


class Projector(Duty):
    """The task that keeps history. `tally` is its own: it counts in the archive's thread.

    `damaged_rows` counts rows that could not be read and were passed over; `failure` says why it does not go on.
    """

    name = "projector"

    def __init__(self, gateway: Gateway, archive: Archive, tally: Tally, tracer: Tracer | None = None) -> None:
        super().__init__()
        self._tracer = tracer or Tracer()
        self._gateway = gateway
        self._archive = archive
        self._tally = tally
        self._instance = ""
        self.damaged_rows = 0
        self.failure = ""

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except HistoryError as error:
                self.failure = str(error)
                if error.damaged:
                    await self._archive.rebuild()
            except EmpdError as error:
                self.failure = str(error)
            await asyncio.sleep(RESTART_S)

    async def _follow(self) -> None:
        archive = self._archive
        following = self._gateway.follow(CONSUMER, 0, [Kind.RESULTS], self._join)
        async with contextlib.aclosing(following) as frames:
            async for frame in frames:
                if isinstance(frame, Reset):
                    # What was trimmed before it was seen is lost to history, and only to history.
                    self._tally.count("empd_history_resets_total")
                    await self._move(frame.first_seq - 1)
                    continue
                rows = frame.rows
                while rows:
                    count = await archive.call(functools.partial(self._project, rows=rows))
                    archive.through_seq = rows[count - 1][0]
                    rows = rows[count:]
                self.failure = ""

    async def _join(self, instance: str) -> int:
        """Where to begin in the journal of this state directory: behind what history holds of it."""
        self._instance = instance
        known = await self._archive.call(lambda history: history.instance)
        if known != instance:
            await self._move(0)
        return self._archive.through_seq + 1

    async def _move(self, cursor: int) -> None:
        instance = self._instance
        await self._archive.call(lambda history: history.follow(instance, cursor))
        self._archive.through_seq = cursor

    def _project(self, history: History, rows: Sequence[Row]) -> int:
        """Writes what the rows say of ended jobs, in the archive's thread, `JOBS_PER_TRANSACTION` and what is left of
        the last one's row; returns how many rows are done."""
        ended: list[Ended] = []
        jobs = done = 0
        for _, _, kind, _, body in rows:
            if jobs >= JOBS_PER_TRANSACTION:
                break
            done += 1
            if kind == Kind.RESULTS:
                try:
                    results: Results = decode_body(kind, body)
                    ended += records.to_history(results)
                except (ValueError, EmpdError):
                    self.damaged_rows += 1
                    continue
                jobs += tally_results(self._tally, results)
                if self._tracer.on:
                    trace_results(self._tracer, results, self._instance)
        history.apply(rows[done - 1][0], ended)
        return done


def tally_results(tally: Tally, results: Results) -> int:
    """Counts ended jobs for the metrics; returns how many they are."""
    at_ns = results.at_ns
    counted = 0
    for group in results.groups:
        jobs = group.jobs
        service = render.options_of(group).service
        counted += len(jobs)
        badly = [job for job in jobs if job.outcome != _COMPLETED]
        well = [job for job in jobs if job.outcome == _COMPLETED] if badly else jobs
        ends = Counter((job.outcome, job.error.failure if job.error else "") for job in badly)
        if well:
            ends[_COMPLETED, ""] = len(well)
        for (outcome, failure), count in ends.items():
            status = render.outcome_label(outcome)
            labels = (("cause", failure), ("outcome", status), ("service", service), ("status", status))
            tally.count("empd_jobs_total", labels, count)
        of_service = (("service", service),)
        tally.count("empd_job_attempts_total", of_service, sum([job.attempts for job in jobs]))
        queued = [job.started_ns - job.submitted_ns for job in jobs if job.started_ns]
        tally.observe("empd_job_queue_seconds", of_service, _seconds(queued))
        for success, those in (("true", well), ("false", badly)):
            times = _seconds([at_ns - job.started_ns for job in those if job.started_ns])
            if times:
                tally.observe("empd_job_run_seconds", of_service, times)
                tally.observe("empd_job_duration_seconds", (*of_service, ("success", success)), times)
    return counted


def _seconds(spans_ns: list[int]) -> list[float]:
    return [span_ns / NS_PER_S if span_ns > 0 else 0.0 for span_ns in spans_ns]


def trace_results(tracer: Tracer, results: Results, instance: str) -> None:
    """Makes the spans of ended jobs."""
    for group in results.groups:
        options = render.options_of(group)
        for job in group.jobs:
            tracer.ended(
                EndedJob(
                    instance,
                    job.id,
                    options.service,
                    options.trace,
                    job.submitted_ns,
                    job.started_ns,
                    results.at_ns,
                    render.outcome_label(job.outcome),
                    job.error.failure if job.error else "",
                    job.attempts,
                )
            )
