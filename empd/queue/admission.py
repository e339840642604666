"""Decides on submissions: which jobs of a frame are taken, which are refused and why, which exist already."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from empd.errors import FailureClass
from empd.job import JobGroup, Submit
from empd.payload import BlobRef
from empd.queue import options as job_options
from empd.queue import rows
from empd.queue.evolve import payload_fingerprint
from empd.queue.options import OptionsTable
from empd.queue.policy import Policy
from empd.queue.rows import Fact, Kind
from empd.queue.state import Options, QueueState, Session
from empd.result import Refusal

KEY_CHARS_MAX = 256
_FULL_RETRY_AFTER_S = 1.0
_JOB_NUMBER_MAX = 1 << 32


class Admission(NamedTuple):
    """What becomes of a Submit frame: the facts to journal, and what the client is told."""

    facts: list[Fact]
    refused: list[Refusal]
    existing: list[tuple[int, int]]


def submit(
    state: QueueState, table: OptionsTable, session: Session, frame: Submit, raw: bytes, closed: str = ""
) -> Admission:
    """Decides on one Submit frame of a session. `closed`: why nothing can be taken now (a full disk).

    A frame number already taken gets the same answer again. Raises ValueError when the frame is out of turn.
    """
    if frame.number <= session.frame_number or any(number == frame.number for number, _ in session.skipped):
        return _again(session, frame)
    count = sum(len(group.payloads) for group in frame.groups)
    if frame.first < session.next_job:
        raise ValueError(f"jobs start at {frame.first}, but the session's jobs up to {session.next_job - 1} are taken")
    if frame.first + count > _JOB_NUMBER_MAX:
        raise ValueError(f"a session has at most {_JOB_NUMBER_MAX} jobs; open a new one")
    for group in frame.groups:
        if group.keys is not None and len(group.keys) != len(group.payloads):
            raise ValueError("keys must be left out or be as many as payloads")
    whole = closed or _full(state, table.policy, frame, count)
    if whole:
        refusal = [Refusal(i, FailureClass.UNAVAILABLE, whole, _FULL_RETRY_AFTER_S) for i in range(count)]
        session.skipped.append((frame.number, refusal))
        return Admission([], refusal, [])
    refused, existing = _judge(state, table, frame)
    if not refused and not existing and not session.skipped:
        return Admission([Fact(Kind.SUBMITTED, frame, session.number, raw)], [], [])
    if len(refused) == count:
        session.skipped.append((frame.number, refused))
        return Admission([], refused, [])
    taken = rows.Taken(msgspec.Raw(raw), refused, existing, list(session.skipped))
    return Admission([Fact(Kind.TAKEN, taken, session.number)], refused, existing)


def _again(session: Session, frame: Submit) -> Admission:
    for number, refused in session.skipped:
        if number == frame.number:
            return Admission([], refused, [])
    refused, existing = session.answers.get(frame.number, ([], []))
    return Admission([], refused, existing)


def _full(state: QueueState, policy: Policy, frame: Submit, count: int) -> str:
    if len(state.jobs) + count > policy.queue_jobs_max:
        return f"the queue holds {len(state.jobs)} jobs, its bound is {policy.queue_jobs_max} (queue_jobs_max)"
    size = sum(len(p) for group in frame.groups for p in group.payloads if isinstance(p, bytes))
    if state.payload_bytes + size > policy.queue_bytes_max:
        return f"the queue holds {state.payload_bytes} payload bytes, its bound is {policy.queue_bytes_max}"
    keys = sum(len(group.keys) for group in frame.groups if group.keys)
    if keys and len(state.keys) + keys > policy.idempotency_keys_max:
        return f"the table of idempotency keys is full ({policy.idempotency_keys_max}, idempotency_keys_max)"
    return ""


def _judge(state: QueueState, table: OptionsTable, frame: Submit) -> tuple[list[Refusal], list[tuple[int, int]]]:
    refused: list[Refusal] = []
    existing: list[tuple[int, int]] = []
    index = 0
    seen_keys: set[str] = set()
    for group in frame.groups:
        failure, reason = _judge_options(table, group)
        if failure:
            refused += [Refusal(index + i, failure, reason) for i in range(len(group.payloads))]
        elif group.keys:
            for i, key in enumerate(group.keys):
                if key:
                    _judge_key(state, table.get(group.options), group, i, index + i, seen_keys, refused, existing)
        if not failure:
            refused += _judge_payloads(table.policy, group, index, {refusal.index for refusal in refused})
        index += len(group.payloads)
    return sorted(refused, key=lambda refusal: refusal.index), existing


def _judge_options(table: OptionsTable, group: JobGroup) -> tuple[str, str]:
    try:
        options = table.get(group.options)
    except ValueError as error:
        return FailureClass.INVALID_INPUT, str(error)
    if options.problem is None:
        wrong = job_options.problem(options.spec)
        options.problem = (FailureClass.INVALID_INPUT, wrong) if wrong else _unmatchable(options, table.policy)
    return options.problem


def _unmatchable(options: Options, policy: Policy) -> tuple[str, str]:
    reason = job_options.unmatchable(options.spec, policy)
    return (FailureClass.UNMATCHABLE, reason) if reason else ("", "")


def _judge_payloads(policy: Policy, group: JobGroup, index: int, out: set[int]) -> list[Refusal]:
    limit = policy.inline_bytes_max
    if not any(isinstance(p, BlobRef) or len(p) > limit for p in group.payloads):
        return []
    return [
        Refusal(index + i, FailureClass.INVALID_INPUT, f"the payload has {len(p)} bytes; above {limit} send a blob")
        for i, p in enumerate(group.payloads)
        if not isinstance(p, BlobRef) and len(p) > limit and index + i not in out
    ]


def _judge_key(
    state: QueueState, options: Options, group: JobGroup, position: int, index: int,
    seen: set[str], refused: list[Refusal], existing: list[tuple[int, int]],
) -> None:  # fmt: skip
    assert group.keys is not None
    key = group.keys[position]
    if len(key) > KEY_CHARS_MAX:
        refused.append(Refusal(index, FailureClass.INVALID_INPUT, f"a key has at most {KEY_CHARS_MAX} characters"))
        return
    known = state.keys.get(key)
    if known is None:
        if key in seen:
            refused.append(Refusal(index, FailureClass.REFUSED, f"idempotency key {key!r} stands twice in one frame"))
        seen.add(key)
    elif known.fingerprint != payload_fingerprint(options.spec.service, group.payloads[position]):
        reason = f"idempotency key {key!r} was used with another payload or service"
        refused.append(Refusal(index, FailureClass.REFUSED, reason))
    else:
        existing.append((index, known.job))
