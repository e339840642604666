"""Journal rows as the transitions of single jobs that the event streams tell. Pure.

submitted    the job was accepted
assigned     a worker holds it: worker, epoch
requeued     an attempt ended early: epoch, cause, delay_s, error
stopping     its holder was told to stop: epoch, why
retried      a dead-lettered job got another chance
checkpoint   it stored state for its next attempt
completed, failed, cancelled, expired, dead_lettered      it ended
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from empd.clock import NS_PER_S
from empd.job import Cause, Outcome, Submit, format_id
from empd.queue.rows import (
    Assigned,
    Checkpointed,
    Ids,
    Kind,
    Requeued,
    Stopping,
    Taken,
    decode_body,
    decode_submit,
)
from empd.result import Results
from empd.web import render
from empd.wire.codec import decode_options

ENDINGS = frozenset(outcome.label for outcome in Outcome)
"""Names of the transitions after which a job has no more."""

Row = tuple[int, int, int, int, bytes]
"""(seq, at_ns, kind, origin, body), as in a `Rows` frame."""


class Transition(NamedTuple):
    """What one row says of one job; `data` becomes the event's JSON."""

    job_id: int
    name: str
    data: dict[str, Any]


def of_row(row: Row) -> list[Transition]:
    """The transitions in a row, in order; none for rows that are not about jobs. Raises ValueError on a damaged row."""
    _, at_ns, kind, origin, body = row
    tell = _TELLERS.get(kind)
    if tell is None:
        return []
    at = {"at": render.time_of(at_ns)}
    told = tell(decode_body(kind, body), origin)
    return [Transition(job, name, {"job": format_id(job), "event": name, **at, **data}) for job, name, data in told]


Told = Iterator[tuple[int, str, dict[str, Any]]]


def _submitted(body: Submit, origin: int) -> Told:
    yield from _accepted(body, origin, frozenset())


def _taken(body: Taken, origin: int) -> Told:
    left_out = {refusal.index for refusal in body.refused} | {index for index, _ in body.existing}
    yield from _accepted(decode_submit(bytes(body.submit)), origin, frozenset(left_out))


def _accepted(submit: Submit, session: int, left_out: frozenset[int]) -> Told:
    index = 0
    for group in submit.groups:
        options = decode_options(bytes(group.options))
        data = {"service": options.service, "priority": options.priority, "labels": options.labels or {}}
        for _ in group.payloads:
            if index not in left_out:
                yield session << 32 | submit.first + index, "submitted", data
            index += 1


def _assigned(body: Assigned, _: int) -> Told:
    for epoch, job in enumerate(body.ids, body.first_epoch):
        yield job, "assigned", {"worker": body.worker, "epoch": epoch}


def _requeued(body: Requeued, _: int) -> Told:
    for job in body.jobs:
        data = {
            "epoch": job.epoch,
            "cause": cause_label(job.cause),
            "delay_s": job.delay_ns / NS_PER_S,
            "error": render.error(job.error),
        }
        yield job.id, "requeued", data


def _stopping(body: Stopping, _: int) -> Told:
    for job in body.jobs:
        yield job.id, "stopping", {"epoch": job.epoch, "why": job.failure}


def _retried(body: Ids, _: int) -> Told:
    for job in body.ids:
        yield job, "retried", {}


def _checkpoint(body: Checkpointed, _: int) -> Told:
    yield body.id, "checkpoint", {"bytes": len(body.data), "doubt": body.doubt}


def _ended(body: Results, _: int) -> Told:
    for group in body.groups:
        options = render.options_of(group)
        for job in group.jobs:
            yield job.id, render.outcome_label(job.outcome), render.finished(job, options, body.worker, body.at_ns)


def cause_label(cause: int) -> str:
    """The API's name of a cause; a number of a newer daemon stays a number."""
    try:
        return Cause(cause).name.lower()
    except ValueError:
        return f"cause_{cause}"


_TELLERS: dict[int, Callable[[Any, int], Told]] = {
    Kind.SUBMITTED: _submitted,
    Kind.TAKEN: _taken,
    Kind.ASSIGNED: _assigned,
    Kind.RESULTS: _ended,
    Kind.REQUEUED: _requeued,
    Kind.STOPPING: _stopping,
    Kind.RETRIED: _retried,
    Kind.CHECKPOINT: _checkpoint,
}

KINDS = sorted(int(kind) for kind in _TELLERS)
"""The row kinds that an event stream needs."""
