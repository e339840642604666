"""Asking after the open jobs, a part at a time. No I/O.

What ended while nobody listened is owed, and may be a million jobs or gigabytes of results: the next part is asked for
when the last one has been answered, so that nobody is owed more than it reads, and others are served in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from empd.client.handle import Request
from empd.client.requests import Requests
from empd.wire.frames import Ask

ASK_IDS_MAX = 5_000


class RollCall:
    """Which jobs are still to be asked for, and the question on its way."""

    def __init__(self, requests: Requests, is_open: Callable[[int], bool]) -> None:
        self._requests = requests
        self._is_open = is_open
        self._left: deque[int] = deque()
        self._asked: Request | None = None
        self._number = 0

    @property
    def over(self) -> bool:
        """Nothing is left to ask for, and nothing unanswered."""
        return not self._left and (self._asked is None or self._asked.ended)

    def begin(self, ids: Iterable[int]) -> None:
        """Asks for these jobs, and none of those it was at."""
        self._left = deque(ids)
        if self._asked is not None and not self._asked.ended:
            self._requests.withdraw(self._number)
        self._asked = None

    def add(self, ids: Iterable[int]) -> None:
        """Asks for these jobs too."""
        self._left.extend(ids)

    def go_on(self) -> None:
        """Asks for the next part, when the last one is answered. Jobs that ended meanwhile are passed over."""
        if self._left and (self._asked is None or self._asked.ended):
            ids = list(islice(self._next(), ASK_IDS_MAX))
            if ids:
                self._number = self._requests.next_number()
                self._asked = self._requests.ask(self._number, Ask(self._number, ids, ended_only=True))

    def _next(self) -> Iterable[int]:
        while self._left:
            number = self._left.popleft()
            if self._is_open(number):
                yield number
