"""Cancel and retry of any number of jobs: request after request, until all have been told of. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from empd import job
from empd.client.options import Identified, as_number
from empd.job import JobFilter
from empd.record import Record
from empd.wire.frames import Cancel, Retry

IDS_PER_REQUEST = 50_000
_PLACE = ("more", "cursor", "after")


class Bulk:
    """One verb on jobs by id, or by filters (fields of JobFilter). `found`: what the answers so far said, ids as people
    see them.

    Raises ValueError when neither is given, TypeError for an unknown filter.
    """

    def __init__(
        self,
        verb: type[Cancel | Retry],
        jobs: Iterable[Identified | str | int],
        dry_run: bool,
        filters: Mapping[str, Any],
    ) -> None:
        self.found: dict[str, list[str]] = {}
        self._verb = verb
        self._dry_run = dry_run
        self._ids = [as_number(one) for one in jobs]
        self._selected = JobFilter(**filters) if filters else None
        self._ended = False
        if not self._ids and self._selected is None:
            raise ValueError("name jobs, or give a filter: an empty selection would mean all of them")

    def following(self) -> Callable[[int], Record] | None:
        """Makes the next request out of its number; None when all jobs have been told of."""
        if self._ended:
            return None
        ids, self._ids = self._ids[:IDS_PER_REQUEST], self._ids[IDS_PER_REQUEST:]
        selected = None if ids else self._selected
        return lambda number: self._verb(number, ids, selected, self._dry_run)

    def answered(self, body: Mapping[str, Any]) -> None:
        """The answer to the request before."""
        for name, ids in body.items():
            if name not in _PLACE:
                self.found.setdefault(name, []).extend(map(job.format_id, ids))
        if self._selected is not None and "more" in body:
            self._selected.cursor, self._selected.after = body["cursor"], body["after"]
        else:
            self._ended = not self._ids
