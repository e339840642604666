"""Decides on submissions: which jobs of a frame are taken, which are refused and why, which exist already."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from empd.errors import FailureClass
from empd.job import SESSION_JOBS_MAX, JobGroup, Submit
from empd.payload import BlobRef
from empd.queue import rows
from empd.queue.evolve import payload_fingerprint
from empd.queue.options import REASON_CHARS_MAX, OptionsTable
from empd.queue.policy import Policy
from empd.queue.rows import Fact, Kind
from empd.queue.state import QueueState, Session
from empd.result import Refusal

KEY_CHARS_MAX = 256
_FULL_RETRY_AFTER_S = 1.0
_SKIPPED_KEPT = 256
FRAME_JOBS_MAX = 4096
"""Jobs in one frame: so many can be refused with their reasons in one frame."""


class Admission(NamedTuple):
    """What becomes of a Submit frame: the facts to journal, and what the client is told."""

    facts: list[Fact]
    refused: list[Refusal]
    existing: list[tuple[int, int]]


class Outside(NamedTuple):
    """What only the shell can see: why nothing can be taken now (a full disk), and which blobs are not there."""

    closed: str = ""
    blobs_missing: frozenset[str] = frozenset()


OPEN = Outside()


def submit(
    state: QueueState, table: OptionsTable, session: Session, frame: Submit, raw: bytes, outside: Outside = OPEN
) -> Admission:
    """Decides on one Submit frame of a session.

    A frame number already taken gets the same answer again. Raises ValueError when the frame is out of turn.
    """
    if frame.number <= session.frame_number or (session.skipped and frame.number in dict(session.skipped)):
        return _again(session, frame)
    count = 0
    for group in frame.groups:
        count += len(group.payloads)
    if count > FRAME_JOBS_MAX:
        raise ValueError(f"a frame has at most {FRAME_JOBS_MAX} jobs, this one has {count}")
    if frame.first < session.next_job:
        raise ValueError(f"jobs start at {frame.first}, but the session's jobs up to {session.next_job - 1} are taken")
    if frame.first + count > SESSION_JOBS_MAX:
        raise ValueError(f"a session has at most {SESSION_JOBS_MAX} jobs; say ClientHello with `renew` before")
    for group in frame.groups:
        if group.keys is not None and len(group.keys) != len(group.payloads):
            raise ValueError("keys must be left out or be as many as payloads")
    whole = outside.closed or _full(state, table.policy, frame, count)
    if whole:
        refusal = [Refusal(i, FailureClass.UNAVAILABLE, whole, _FULL_RETRY_AFTER_S) for i in range(count)]
        _skip(session, frame.number, refusal)
        return Admission([], refusal, [])
    judgement = _Judgement(state, table, outside)
    index = 0
    for group in frame.groups:
        judgement.group(group, index)
        index += len(group.payloads)
    if not judgement.refused and not judgement.existing and not session.skipped:
        return Admission([Fact(Kind.SUBMITTED, frame, session.number, raw)], [], [])
    refused, existing = [refusal for _, refusal in sorted(judgement.refused.items())], judgement.existing
    if len(refused) == count:
        _skip(session, frame.number, refused)
        return Admission([], refused, [])
    taken = rows.Taken(msgspec.Raw(raw), refused, existing, list(session.skipped))
    return Admission([Fact(Kind.TAKEN, taken, session.number)], refused, existing)


def _skip(session: Session, number: int, refused: list[Refusal]) -> None:
    """Remembers the latest frames refused whole: a client sends again only what it has no answer to."""
    session.skipped.append((number, refused))
    del session.skipped[:-_SKIPPED_KEPT]


def _again(session: Session, frame: Submit) -> Admission:
    for number, refused in session.skipped:
        if number == frame.number:
            return Admission([], refused, [])
    refused, existing = session.answers.get(frame.number, ([], []))
    return Admission([], refused, existing)


def _full(state: QueueState, policy: Policy, frame: Submit, count: int) -> str:
    if len(state.jobs) + count > policy.queue_jobs_max:
        return f"the queue holds {len(state.jobs)} jobs, its bound is {policy.queue_jobs_max} (queue_jobs_max)"
    size = sum([len(payload) for group in frame.groups for payload in group.payloads if type(payload) is bytes])
    if state.payload_bytes + size > policy.queue_bytes_max:
        return f"the queue holds {state.payload_bytes} payload bytes, its bound is {policy.queue_bytes_max}"
    if len(state.keys) + count > policy.idempotency_keys_max:
        # A key that is known names its job even when the table is full: the client only asks again.
        keys = sum(1 for group in frame.groups for key in group.keys or () if key and key not in state.keys)
        if keys and len(state.keys) + keys > policy.idempotency_keys_max:
            return f"the table of idempotency keys is full ({policy.idempotency_keys_max}, idempotency_keys_max)"
    return ""


class _Judgement:
    """Judges the jobs of one frame, one group after the other."""

    def __init__(self, state: QueueState, table: OptionsTable, outside: Outside) -> None:
        self._state = state
        self._table = table
        self._outside = outside
        self._seen_keys: set[str] = set()
        self.refused: dict[int, Refusal] = {}
        self.existing: list[tuple[int, int]] = []

    def group(self, group: JobGroup, index: int) -> None:
        """Judges a group whose first job is at `index` of the frame."""
        failure, reason = self._table.judge(group.options)
        if failure:
            for position in range(len(group.payloads)):
                self._refuse(index + position, failure, reason)
            return
        limit = self._table.policy.inline_bytes_max
        if [payload for payload in group.payloads if type(payload) is not bytes or len(payload) > limit]:
            self._payloads(group, index, limit)
        if group.keys:
            for position, key in enumerate(group.keys):
                if key and index + position not in self.refused:
                    self._key(group, position, index + position)

    def _refuse(self, index: int, failure: str, reason: str) -> None:
        self.refused.setdefault(index, Refusal(index, failure, reason[:REASON_CHARS_MAX]))

    def _payloads(self, group: JobGroup, index: int, limit: int) -> None:
        for position, payload in enumerate(group.payloads):
            if isinstance(payload, BlobRef):
                if payload.id in self._outside.blobs_missing:
                    reason = f"blob {payload.id} is not in the arena in this size; upload it first"
                    self._refuse(index + position, FailureClass.NOT_FOUND, reason)
            elif len(payload) > limit:
                reason = f"the payload has {len(payload)} bytes; above {limit} send a blob"
                self._refuse(index + position, FailureClass.INVALID_INPUT, reason)

    def _key(self, group: JobGroup, position: int, index: int) -> None:
        assert group.keys is not None
        key = group.keys[position]
        service = self._table.get(group.options).spec.service
        if len(key) > KEY_CHARS_MAX:
            self._refuse(index, FailureClass.INVALID_INPUT, f"a key has at most {KEY_CHARS_MAX} characters")
            return
        known = self._state.keys.get(key)
        if known is None:
            if key in self._seen_keys:
                self._refuse(index, FailureClass.REFUSED, f"idempotency key {key!r} stands twice in one frame")
            self._seen_keys.add(key)
        elif known.fingerprint != payload_fingerprint(service, group.payloads[position]):
            reason = f"idempotency key {key!r} was used with another payload or service"
            self._refuse(index, FailureClass.REFUSED, reason)
        else:
            self.existing.append((index, known.job))
