"""What the broker can say of single jobs: their state, or, until history has it, their result."""

from __future__ import annotations

from typing import NamedTuple

from empd.broker.ledger import Ledger
from empd.job import Outcome, State
from empd.queue import requests
from empd.queue.machine import Queue
from empd.queue.rows import decode_body
from empd.queue.state import Job, doubt_of
from empd.result import FinishedGroup, FinishedJob, JobStatus, Results


class Found(NamedTuple):
    """Jobs that have not ended, or are dead letters; those letters; and jobs that the broker does not know: what ended
    and is not in `recent` any more is in history."""

    unfinished: list[Job]
    dead: list[Results]
    unknown: list[int]


class Answers:
    """Reads the queue, and the journal for what ended a moment ago."""

    def __init__(self, queue: Queue, ledger: Ledger) -> None:
        self._queue = queue
        self._ledger = ledger

    def look_at(self, ids: list[int], rows: dict[int, set[int]]) -> Found:
        """Where the jobs stand. Those that ended are added to `rows`: which rows of the journal hold their results."""
        state = self._queue.state
        unfinished: list[Job] = []
        dead: list[Results] = []
        unknown: list[int] = []
        for job_id in ids:
            job = state.jobs.get(job_id)
            if job is not None:
                unfinished.append(job)
                if job.state is State.DEAD:
                    dead.append(_dead(job))
                continue
            seq = state.recent.get(job_id)
            if seq is None:
                unknown.append(job_id)
            else:
                rows.setdefault(seq, set()).add(job_id)
        return Found(unfinished, dead, unknown)

    def status(self, job: Job) -> JobStatus:
        """What is known of an unfinished job."""
        return requests.status(self._queue.state, job)

    def results(self, seq: int, wanted: set[int]) -> Results | None:
        """The results of these jobs, in a committed row; None when it was trimmed (a consumer fell too far behind)."""
        found = self._ledger.journal.read_from(seq, 1)
        if not found or found[0].seq != seq:
            return None
        results: Results = decode_body(found[0].kind, found[0].body)
        groups = [
            FinishedGroup(group.options, jobs)
            for group in results.groups
            if (jobs := [job for job in group.jobs if job.id in wanted])
        ]
        return Results(results.session, results.worker, results.at_ns, groups)


def _dead(job: Job) -> Results:
    error = job.extra.error if job.extra else None
    finished = FinishedJob(
        job.id, Outcome.DEAD, None, job.submitted_ns, job.started_ns, job.attempts, error, None, doubt_of(job)
    )
    return Results(job.id >> 32, "", 0, [FinishedGroup(job.options.raw, [finished])])
