"""Open jobs that the broker has forgotten: what is to be asked of history, and what its answers mean. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from empd.client.handle import Ending
from empd.client.submissions import Submissions
from empd.errors import FailureClass, Refused
from empd.job import format_id
from empd.result import JobStatus
from empd.wire.frames import HistoryAnswer

LOOKUP_IDS_MAX = 5_000


class Lookups:
    """`unknown`: the jobs to look up, each with the journal row that history must have read before it can say no."""

    def __init__(self, submissions: Submissions) -> None:
        self.unknown: dict[int, int] = {}
        self._submissions = submissions
        self._taken: dict[int, int] = {}

    def add(self, statuses: Iterable[JobStatus]) -> None:
        """Notes which open and accepted jobs the broker does not know."""
        for status in statuses:
            if status.state == "unknown":
                handle = self._submissions.open.get(status.id)
                if handle is not None and handle.batch is None:
                    self.unknown[status.id] = status.epoch

    def take(self) -> list[int]:
        """The next jobs to look up, at most as many as one question may name."""
        self._taken = {number: self.unknown[number] for number in islice(self.unknown, LOOKUP_IDS_MAX)}
        for number in self._taken:
            del self.unknown[number]
        return [number for number in self._taken if number in self._submissions.open]

    def put_back(self, ids: Iterable[int]) -> None:
        """History did not answer for these."""
        self.unknown.update((number, self._taken.get(number, 0)) for number in ids)

    def answered(self, ids: Iterable[int], answer: HistoryAnswer) -> None:
        """Ends the open jobs `ids` with what history says of them. Those that it may not have read yet stay unknown."""
        for group in answer.groups:
            self._submissions.finish(group.jobs, Ending(bytes(group.options)))
        expired = set(answer.expired)
        for number in ids:
            if number not in self._submissions.open:
                continue
            name = format_id(number)
            if number in expired:
                reason = f"expired_from_history: job {name} ended, and its record is past `history_keep_s`"
            elif answer.through_seq < self._taken.get(number, 0):
                self.put_back([number])
                continue
            else:
                reason = f"no job {name} is known here, and history holds no record of it"
            self._submissions.fail(number, Refused(FailureClass.NOT_FOUND, reason))
