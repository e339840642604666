"""A connector's own metrics: plain numbers, shipped to `/metrics` with the worker's snapshots every few seconds.

    self.site.metrics.counter("empd_comfyui_nodes_total", {"kind": "cached"}).inc()

Names without the prefix `empd_` get it; the label `service` is added on the way. Series go when their worker goes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple, TypeVar

SERIES_MAX = 500
"""Of one service in one worker; a label that holds ids or texts must not fill the memory of all who scrape."""

BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
"""Upper bounds of a histogram's buckets, in seconds up to an hour."""

PREFIX = "empd_"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,150}")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,60}")
_RESERVED = {"le", "service", "source"}


class Series(NamedTuple):
    """One series as it is now; of a histogram `value` is the sum, `buckets` (upper bound, cumulative count)."""

    kind: str
    name: str
    labels: dict[str, str]
    value: float
    buckets: list[tuple[float, int]]


class Counter:
    """A number that only grows."""

    kind = "counter"

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        """Adds; a negative number is passed over."""
        if by > 0:
            self.value += by

    def buckets(self) -> list[tuple[float, int]]:
        """None."""
        return []


class Gauge(Counter):
    """A number that goes up and down."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """The number is this now."""
        self.value = value

    def inc(self, by: float = 1.0) -> None:
        """Adds, or takes away."""
        self.value += by


class Histogram:
    """How values (seconds) are spread over `BOUNDS_S`."""

    kind = "histogram"

    def __init__(self) -> None:
        self.value = 0.0
        self._counts = [0] * (len(BOUNDS_S) + 1)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(BOUNDS_S, value)] += 1
        self.value += value

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound, how many were at most that)."""
        return list(zip((*BOUNDS_S, float("inf")), accumulate(self._counts), strict=True))


Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


class Meters:
    """One service's instruments. Ask for one as often as you like: the same name and labels give the same one.

    Raises ValueError for a name or label that no metric can have, or a name that is of another kind already. Past
    `series_max` an instrument counts for nobody; `dropped` says how often that was.
    """

    def __init__(self, series_max: int = SERIES_MAX) -> None:
        self._series_max = series_max
        self._known: dict[tuple[str, tuple[tuple[str, str], ...]], Counter | Gauge | Histogram] = {}
        self._kinds: dict[str, str] = {}
        self.dropped = 0

    def counter(self, name: str, labels: Mapping[str, str] | None = None) -> Counter:
        """A counter; its name should end in `_total`."""
        return self._instrument(Counter, name, labels)

    def gauge(self, name: str, labels: Mapping[str, str] | None = None) -> Gauge:
        """A gauge."""
        return self._instrument(Gauge, name, labels)

    def histogram(self, name: str, labels: Mapping[str, str] | None = None) -> Histogram:
        """A histogram of seconds; its name should end in `_seconds`."""
        return self._instrument(Histogram, name, labels)

    def series(self) -> Iterator[Series]:
        """Every series as it is now."""
        for (name, labels), found in self._known.items():
            yield Series(found.kind, name, dict(labels), found.value, found.buckets())

    def _instrument(self, kind: type[Instrument], name: str, labels: Mapping[str, str] | None) -> Instrument:
        key = (name, tuple(sorted(labels.items())) if labels else ())
        known = self._known.get(key)
        if type(known) is kind:
            return known
        full = name if name.startswith(PREFIX) else PREFIX + name
        if full != name:
            return self._instrument(kind, full, labels)
        self._check(kind.kind, name, labels or {})
        made = kind()
        if len(self._known) >= self._series_max:
            self.dropped += 1
        else:
            self._kinds[name] = kind.kind
            self._known[key] = made
        return made

    def _check(self, kind: str, name: str, labels: Mapping[str, str]) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no metric's name; accepted: lower case letters, digits and _")
        wrong = [label for label in labels if not _LABEL.fullmatch(label) or label in _RESERVED]
        if wrong:
            raise ValueError(f"{name}: {wrong[0]!r} cannot be a label")
        if self._kinds.get(name, kind) != kind:
            raise ValueError(f"{name} is a {self._kinds[name]} already, and cannot be a {kind} too")


NO_METERS = Meters(series_max=0)
"""Where nobody scrapes."""
