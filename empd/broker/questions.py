"""Questions after jobs (`Ask`), answered over as many passes as they take.

A client that was cut off asks after everything it has open, which may be a million jobs, and may be owed more than it
reads at once. So a pass answers a part, for the others not to wait, and a question whose client has not read what it
was sent keeps its place: dropped, it would only be asked again as a whole.
"""

from __future__ import annotations

from itertools import islice

from empd.broker.answers import Answers
from empd.broker.outbox import Outbox
from empd.clock import NS_PER_MS
from empd.payload import FRAME_BYTES_MAX
from empd.result import JobStatus, Results
from empd.wire import frames
from empd.wire.codec import encode

ASK_MAX = 20_000
ASKED_MAX = 100_000
"""Jobs of unanswered questions that one connection may have."""
WATCHERS_MAX = 64
"""Connections that are told of one job's end beside its owner; others ask."""
_IDS_PER_PASS = 5_000
_RESULT_BYTES_PER_PASS = FRAME_BYTES_MAX
_SLOW_READER_NS = 5 * NS_PER_MS


class Question:
    """One `Ask` and how far its answer is: ids to look at, rows that hold results to send, states to say at the end."""

    __slots__ = ("identity", "left", "request", "rows", "session", "states", "unfinished_too")

    def __init__(self, identity: bytes, session: int, frame: frames.Ask) -> None:
        self.identity = identity
        self.session = session
        self.request = frame.request
        self.unfinished_too = not frame.ended_only
        self.left = frame.ids[::-1]
        self.rows: dict[int, set[int]] = {}
        self.states: list[JobStatus] = []


class Questions:
    """All unanswered questions, and who is to be told of the end of a job that is not of its session."""

    def __init__(self, answers: Answers, outbox: Outbox) -> None:
        self._answers = answers
        self._outbox = outbox
        self._open: list[Question] = []
        self._watchers: dict[int, set[bytes]] = {}

    def ask(self, identity: bytes, session: int, frame: frames.Ask) -> None:
        """Takes a question. Raises ValueError for more than a client may ask at once."""
        if len(frame.ids) > ASK_MAX:
            raise ValueError(f"one Ask names at most {ASK_MAX} jobs, this one {len(frame.ids)}")
        asked = sum(len(question.left) for question in self._open if question.identity == identity)
        if asked + len(frame.ids) > ASKED_MAX:
            raise ValueError(f"{asked} jobs that were asked for are not answered yet, at most {ASKED_MAX} may be")
        self._open.append(Question(identity, session, frame))

    def forget(self, identity: bytes) -> None:
        """This connection waits for no answer any more."""
        self._open = [question for question in self._open if question.identity != identity]

    def watching(self, results: Results) -> set[bytes]:
        """The connections that wait for the end of one of these jobs; they do no longer."""
        found: set[bytes] = set()
        if self._watchers:
            for group in results.groups:
                for job in group.jobs:
                    found |= self._watchers.pop(job.id, set())
        return found

    def answer(self, mono_ns: int) -> int | None:
        """A pass's part of the answers, to be called when all that was decided is committed: a job may have ended in
        this pass. Returns the steady time at which there is more to answer; None when there is not."""
        if not self._open:
            return None
        ids, size = _IDS_PER_PASS, _RESULT_BYTES_PER_PASS
        slow = False
        unanswered: list[Question] = []
        for question in self._open:
            if ids <= 0 or size <= 0:
                unanswered.append(question)
            elif not self._outbox.has_room(question.identity):
                slow = True
                unanswered.append(question)
            else:
                ids -= self._look_at(question, ids)
                size -= self._send_results(question, size)
                if question.left or question.rows:
                    unanswered.append(question)
                else:
                    self._outbox.put(question.identity, _states(question.request, question.states))
        self._open = unanswered
        if ids <= 0 or size <= 0:
            return mono_ns
        return mono_ns + _SLOW_READER_NS if slow else None

    def _look_at(self, question: Question, count: int) -> int:
        """Finds out about the next jobs; how many those were."""
        ids = question.left[: -count - 1 : -1]
        del question.left[-len(ids) :]
        found = self._answers.look_at(ids, question.rows)
        for results in found.dead:
            self._outbox.put(question.identity, results)
        for job in found.unfinished:
            if job.id >> 32 != question.session:
                self._watch(job.id, question.identity)
        if question.unfinished_too:
            question.states += map(self._answers.status, found.unfinished)
        question.states += [JobStatus(job_id, "unknown") for job_id in found.unknown]
        return len(ids)

    def _watch(self, job_id: int, identity: bytes) -> None:
        watching = self._watchers.setdefault(job_id, set())
        if len(watching) < WATCHERS_MAX:
            watching.add(identity)

    def _send_results(self, question: Question, size: int) -> int:
        """Sends the results in the next rows; how many bytes those were."""
        sent = 0
        while question.rows and sent < size:
            [seq] = islice(question.rows, 1)
            wanted = question.rows.pop(seq)
            results = self._answers.results(seq, wanted)
            if results is None:
                question.states += [JobStatus(job_id, "unknown") for job_id in wanted]
            else:
                encoded = encode(results)
                sent += len(encoded)
                self._outbox.put(question.identity, encoded)
        return sent


def _states(request: int, jobs: list[JobStatus]) -> bytes:
    """A States frame; where all that is known does not fit into one, with what fits."""
    encoded = encode(frames.States(request, jobs))
    if len(encoded) > FRAME_BYTES_MAX:
        short = [
            JobStatus(j.id, j.state, j.service, j.priority, j.submitted_ns, j.started_ns, j.attempts, j.worker, j.epoch)
            for j in jobs
        ]
        encoded = encode(frames.States(request, short))
    if len(encoded) > FRAME_BYTES_MAX:
        encoded = encode(frames.States(request, [JobStatus(job.id, job.state, epoch=job.epoch) for job in jobs]))
    return encoded
