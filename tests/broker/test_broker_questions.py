"""Questions after very many jobs, or after more results than a client reads at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from broker_process import RawBroker, group

from empd.broker import questions
from empd.broker.answers import Found
from empd.broker.questions import ASK_MAX, ASKED_MAX, Questions
from empd.payload import INLINE_BYTES_MAX
from empd.queue.state import Job
from empd.result import FinishedGroup, FinishedJob, JobStatus, Results
from empd.wire import frames
from empd.wire.codec import decode_for_client, encode

RESULT = bytes(1000)


class Asked:
    """Questions with an outbox that keeps what it is given. Jobs below 1000 ended, those below 2000 have not."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.full: set[bytes] = set()
        outbox: Any = SimpleNamespace(put=self._put, has_room=lambda identity: identity not in self.full)
        self.questions = Questions(self, outbox)  # type: ignore[arg-type]

    def look_at(self, ids: list[int], rows: dict[int, set[int]]) -> Found:
        for number in ids:
            if number < 1000:
                rows.setdefault(number // 10, set()).add(number)
        unfinished: Any = [SimpleNamespace(id=number) for number in ids if 1000 <= number < 2000]
        return Found(unfinished, [], [number for number in ids if number >= 2000])

    def status(self, job: Job) -> JobStatus:
        return JobStatus(job.id, "waiting")

    def results(self, seq: int, wanted: set[int]) -> Results | None:
        jobs = [FinishedJob(number, 0, RESULT, 1, 2, 1) for number in sorted(wanted)]
        return Results(0, "w", seq, [FinishedGroup(b"", jobs)]) if seq else None  # type: ignore[arg-type]

    def _put(self, identity: bytes, frame: Any) -> None:
        self.sent.append((identity, decode_for_client(frame if isinstance(frame, bytes) else encode(frame))))

    def passes(self) -> int:
        """Answers until there is nothing more to do now; how many passes it took."""
        count = 1
        while self.questions.answer(0) == 0:
            count += 1
        return count

    def states(self, identity: bytes) -> list[frames.States]:
        return [frame for to, frame in self.sent if to == identity and type(frame) is frames.States]

    def results_of(self, identity: bytes) -> list[int]:
        results = [frame for to, frame in self.sent if to == identity and type(frame) is Results]
        return [job.id for frame in results for group in frame.groups for job in group.jobs]


def test_a_pass_answers_a_part_and_the_states_come_last() -> None:
    asked = Asked()
    ids = [*range(10, 1500), *range(2000, 2000 + 12_000)]
    asked.questions.ask(b"a", 0, frames.Ask(1, ids))
    assert asked.passes() > 2
    assert sorted(asked.results_of(b"a")) == list(range(10, 1000))
    [states] = asked.states(b"a")
    assert asked.sent[-1][1] == states
    assert sorted(job.id for job in states.jobs) == [*range(1000, 1500), *range(2000, 14_000)]
    assert asked.questions.answer(0) is None


def test_a_pass_sends_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_RESULT_BYTES_PER_PASS", 25_000)
    asked = Asked()
    asked.questions.ask(b"a", 0, frames.Ask(1, list(range(10, 1000))))
    assert asked.questions.answer(7) == 7
    assert len(asked.results_of(b"a")) == 30, "rows of ten jobs of 1000 bytes each, until it is 25,000 bytes or more"
    assert not asked.states(b"a")
    assert asked.passes() > 30
    assert len(asked.states(b"a")) == 1


def test_a_client_that_does_not_read_keeps_its_place_and_holds_up_nobody() -> None:
    asked = Asked()
    asked.full = {b"slow"}
    asked.questions.ask(b"slow", 0, frames.Ask(1, [10, 1000, 2000]))
    asked.questions.ask(b"other", 0, frames.Ask(1, [20, 1000, 2000]))
    due_ns = asked.questions.answer(5)
    assert due_ns is not None
    assert due_ns > 5
    assert asked.results_of(b"other") == [20]
    assert {identity for identity, _ in asked.sent} == {b"other"}
    asked.full.clear()
    asked.passes()
    assert asked.results_of(b"slow") == [10]
    assert [job.id for job in asked.states(b"slow")[0].jobs] == [1000, 2000]


def test_of_jobs_that_have_not_ended_nothing_is_said_where_only_the_ended_are_asked_for() -> None:
    asked = Asked()
    asked.questions.ask(b"a", 1, frames.Ask(1, [10, 1000, 2000], ended_only=True))
    asked.passes()
    assert asked.results_of(b"a") == [10]
    assert [(job.id, job.state) for job in asked.states(b"a")[0].jobs] == [(2000, "unknown")]
    ended = FinishedGroup(b"", [FinishedJob(1000, 0, b"", 1, 2, 1)])  # type: ignore[arg-type]
    assert asked.questions.watching(Results(0, "w", 1, [ended])) == {b"a"}, "a job of another session is watched"


def test_results_that_the_journal_no_longer_has_are_unknown() -> None:
    asked = Asked()
    asked.questions.ask(b"a", 0, frames.Ask(1, [3]))
    asked.passes()
    assert [(job.id, job.state) for job in asked.states(b"a")[0].jobs] == [(3, "unknown")]


def test_nobody_is_answered_who_has_gone() -> None:
    asked = Asked()
    asked.questions.ask(b"a", 0, frames.Ask(1, [10]))
    asked.questions.ask(b"b", 0, frames.Ask(1, [10]))
    asked.questions.forget(b"a")
    asked.passes()
    assert {identity for identity, _ in asked.sent} == {b"b"}


def test_what_one_connection_may_ask_at_once_is_bounded() -> None:
    asked = Asked()
    for number in range(ASKED_MAX // ASK_MAX):
        asked.questions.ask(b"a", 0, frames.Ask(number, [1000] * ASK_MAX))
    with pytest.raises(ValueError, match="not answered yet, at most 100000"):
        asked.questions.ask(b"a", 0, frames.Ask(9, [1000]))
    asked.questions.ask(b"b", 0, frames.Ask(9, [1000]))
    asked.passes()
    asked.questions.ask(b"a", 0, frames.Ask(9, [1000]))


def test_a_client_that_is_owed_more_than_it_reads_gets_all_of_it(broker: RawBroker) -> None:
    """It reads nothing at first; dropped instead, it would ask for everything again, and be dropped again."""
    client, worker = broker.client(), broker.worker()
    ids: list[int] = []
    for _ in range(6):
        ids += client.accepted(group(*[b"\xc0"] * 50))
    for job_id in ids:
        worker.complete(worker.claim(), result=bytes(INLINE_BYTES_MAX))
        client.result(job_id)
    slow = broker.client(RCVHWM=1, RCVBUF=65_536)
    slow.say(frames.Ask(1, ids))
    for request in range(1000, 1020):
        client.say(frames.Ask(request, ids[:1]))
        client.hear(frames.States, request=request)
    slow.hear(frames.States, request=1)
    told = [job.id for frame in slow.take() if type(frame) is Results for each in frame.groups for job in each.jobs]
    assert sorted(told) == ids
    assert slow.ask(frames.Status)["jobs"]["unfinished"] == 0, "it was greeted once, and still is"
