"""What the broker can say of single jobs: their state, or, until history has it, their result."""

from __future__ import annotations

from empd.broker.ledger import Ledger
from empd.job import Outcome, State
from empd.queue import requests
from empd.queue.machine import Queue
from empd.queue.rows import decode_body
from empd.queue.state import Job
from empd.result import FinishedGroup, FinishedJob, JobStatus, Results


class Answers:
    """Reads the queue, and the journal for what ended a moment ago."""

    def __init__(self, queue: Queue, ledger: Ledger) -> None:
        self._queue = queue
        self._ledger = ledger

    def states(self, ids: list[int]) -> tuple[list[JobStatus], list[Results]]:
        """The states of unfinished jobs (of unknown ones: `unknown`: what ended and is not in `recent` any more is in
        history), and the results of ended ones."""
        state = self._queue.state
        unfinished: list[JobStatus] = []
        ended: list[Results] = []
        rows: dict[int, set[int]] = {}
        for job_id in ids:
            job = state.jobs.get(job_id)
            if job is None:
                seq = state.recent.get(job_id)
                if seq is None:
                    unfinished.append(JobStatus(job_id, "unknown"))
                else:
                    rows.setdefault(seq, set()).add(job_id)
            elif job.state is State.DEAD:
                ended.append(_dead(job))
                unfinished.append(requests.status(state, job))
            else:
                unfinished.append(requests.status(state, job))
        for seq, wanted in rows.items():
            found = self._from_row(seq, wanted)
            if found is None:
                unfinished += [JobStatus(job_id, "unknown") for job_id in wanted]
            else:
                ended.append(found)
        return unfinished, ended

    def _from_row(self, seq: int, wanted: set[int]) -> Results | None:
        """The results in a committed row; None when it was trimmed (a consumer fell too far behind)."""
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
    finished = FinishedJob(job.id, Outcome.DEAD, None, job.submitted_ns, job.started_ns, job.attempts, error)
    return Results(job.id >> 32, "", 0, [FinishedGroup(job.options.raw, [finished])])
