"""Ended jobs between their three forms: the journal's `Results`, history's record, the API's JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from empd.job import JobOptions, format_id
from empd.result import FinishedGroup, FinishedJob, JobError, Results
from empd.store.history import History
from empd.store.record import Ended, FinishedRecord, to_stored
from empd.web import render
from empd.wire import codec


def to_history(results: Results) -> list[Ended]:
    """The jobs in a RESULTS row, for history. Raises ProtocolError when a group's options are none."""
    worker, at_ns = results.worker, results.at_ns
    return [to_stored(group.jobs, render.options_of(group), worker, at_ns) for group in results.groups]


def to_finished(record: FinishedRecord) -> FinishedJob:
    """A record as the wire tells of ended jobs."""
    error = JobError(record.failure, record.message, record.evidence) if record.failure else None
    return FinishedJob(
        id=record.id,
        outcome=record.outcome,
        result=record.blob if record.blob is not None else record.result,
        submitted_ns=record.submitted_ns,
        started_ns=record.started_ns,
        attempts=record.attempts,
        error=error,
        usage=record.usage or None,
        doubt=record.doubt,
    )


def options_of(record: FinishedRecord) -> JobOptions:
    """What history keeps of a job's options."""
    return JobOptions(
        service=record.service,
        priority=record.priority,
        customer_id=record.customer_id or None,
        workflow_id=record.workflow_id or None,
        labels=record.labels or None,
    )


def to_groups(records: Iterable[FinishedRecord]) -> list[FinishedGroup]:
    """Records as the wire tells of them: jobs with equal options share a group."""
    groups: dict[bytes, FinishedGroup] = {}
    for record in records:
        options = codec.encode(options_of(record))
        group = groups.setdefault(options, FinishedGroup(msgspec.Raw(options), []))
        group.jobs.append(to_finished(record))
    return list(groups.values())


def to_json(record: FinishedRecord) -> dict[str, Any]:
    """A record as the API shows it."""
    body = render.finished(to_finished(record), options_of(record), record.worker, record.finished_ns)
    if record.result_expired:
        body["result_expired"] = True
    return body


def lookup(history: History, ids: list[int]) -> tuple[list[FinishedRecord], list[int]]:
    """(the records of jobs that history holds, the ids of those whose record is past retention)."""
    known = history.get(ids)
    return list(known.values()), [number for number in ids if number not in known and history.has_expired(number)]


def summary(record: FinishedRecord) -> dict[str, Any]:
    """A record in a list: without its result and evidence."""
    body = to_json(record)
    body.pop("result", None)
    if body["error"]:
        body["error"].pop("evidence", None)
    body["url"] = f"/v1/jobs/{format_id(record.id)}"
    return body
