"""Metric series of many short-lived children as one set that Prometheus can trust.

A child counts from 0 in each generation and sends snapshots of all its series. What a former generation had
counted is added, so that a counter never falls while its source comes and goes; gauges are only of the living
generation; a source that is gone for good takes its series with it.
"""

from __future__ import annotations

import bisect
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from empd.wire.telemetry import Metrics, Sample

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""Upper bounds in seconds, to an hour: GPU jobs take that long."""

SOURCES_MAX = 1_024
SERIES_PER_SOURCE_MAX = 5_000
RETIRED_KEPT = 8

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}")
_KINDS = ("counter", "gauge", "histogram")

Labels = tuple[tuple[str, str], ...]


class Key(NamedTuple):
    """What makes a series."""

    kind: str
    name: str
    labels: Labels


class Value(NamedTuple):
    """A counter's or gauge's value; of a histogram the sum, and (upper bound, cumulative count) pairs."""

    value: float
    buckets: tuple[tuple[float, int], ...] = ()

    def plus(self, other: Value) -> Value:
        """Both together. With other bounds than before only the newer buckets count."""
        if [bound for bound, _ in self.buckets] != [bound for bound, _ in other.buckets]:
            return Value(self.value + other.value, self.buckets or other.buckets)
        pairs = zip(self.buckets, other.buckets, strict=True)
        return Value(self.value + other.value, tuple((bound, a + b) for (bound, a), (_, b) in pairs))


class _Source:
    """The series of one child name over its generations."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.retired: deque[int] = deque(maxlen=RETIRED_KEPT)
        self.living: dict[Key, Value] = {}
        self.base: dict[Key, Value] = {}
        self.heard_ns = 0

    def succeed(self, generation: int) -> None:
        """A new generation begins: what the former counted is kept, its gauges are dropped."""
        for key, value in self.living.items():
            if key.kind != "gauge":
                known = self.base.get(key)
                self.base[key] = value.plus(known) if known else value
        self.living = {}
        self.retired.append(self.generation)
        self.generation = generation

    def values(self) -> Iterator[tuple[Key, Value]]:
        for key, value in self.living.items():
            base = self.base.get(key)
            yield key, value.plus(base) if base else value
        for key, value in self.base.items():
            if key not in self.living:
                yield key, value


class Snapshots:
    """The latest snapshot of every source. `rejected` counts samples that are no metric."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self.rejected = 0

    def update(self, snapshot: Metrics, now_ns: int) -> None:
        """Takes a snapshot; one of a former generation that comes late is passed over."""
        source = self._sources.get(snapshot.source)
        if source is None:
            if len(self._sources) >= SOURCES_MAX:
                self.rejected += len(snapshot.samples)
                return
            source = self._sources[snapshot.source] = _Source(snapshot.generation)
        if snapshot.generation != source.generation:
            if snapshot.generation in source.retired:
                return
            source.succeed(snapshot.generation)
        source.heard_ns = now_ns
        living: dict[Key, Value] = {}
        for sample in snapshot.samples:
            key = key_of(sample, snapshot.source)
            if key is None or len(living) >= SERIES_PER_SOURCE_MAX:
                self.rejected += 1
                continue
            living[key] = _never_less(key, Value(sample.value, tuple(sample.buckets)), source.living.get(key))
        source.living = living

    def drop_gone(self, living: Iterable[str], heard_before_ns: int) -> list[str]:
        """Forgets sources that are not among the living and were not heard since; returns their names."""
        alive = set(living)
        gone = [name for name, each in self._sources.items() if name not in alive and each.heard_ns < heard_before_ns]
        for name in gone:
            del self._sources[name]
        return gone

    def values(self) -> Iterator[tuple[Key, Value]]:
        """Every series, counters carried over generations."""
        for source in self._sources.values():
            yield from source.values()


def key_of(sample: Sample, source: str) -> Key | None:
    """The series of a sample, labelled with where it came from; None when it is no metric."""
    if sample.kind not in _KINDS or not _NAME.fullmatch(sample.name) or sample.value != sample.value:
        return None
    if not all(_LABEL.fullmatch(label) and not label.startswith("__") and label != "le" for label in sample.labels):
        return None
    labels = dict(sample.labels)
    labels.setdefault("source", source)
    return Key(sample.kind, sample.name, tuple(sorted(labels.items())))


def _never_less(key: Key, value: Value, before: Value | None) -> Value:
    """A counter that seems to fall within a generation stays where it was."""
    if before is None or key.kind == "gauge" or value.value >= before.value:
        return value
    return before


class Tally:
    """Counters and histograms that this process keeps itself. Not for use from two threads at once."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], tuple[list[int], list[float]]] = {}

    def count(self, name: str, labels: Labels = (), by: float = 1) -> None:
        """Adds to a counter."""
        key = (name, labels)
        self._counts[key] = self._counts.get(key, 0) + by

    def observe(self, name: str, labels: Labels, values: Iterable[float]) -> None:
        """Adds observations (seconds) to a histogram. Of many, each bound is looked up, not each observation."""
        key = (name, labels)
        known = self._histograms.get(key)
        if known is None:
            known = self._histograms[key] = ([0] * (len(BUCKETS) + 1), [0.0])
        counts, total = known
        ordered = sorted(values)
        total[0] += sum(ordered)
        if len(ordered) < len(BUCKETS):
            for value in ordered:
                counts[bisect.bisect_left(BUCKETS, value)] += 1
            return
        counted = 0
        for index, bound in enumerate(BUCKETS):
            if counted == len(ordered):
                break
            through = bisect.bisect_right(ordered, bound, counted)
            counts[index] += through - counted
            counted = through
        counts[-1] += len(ordered) - counted

    def values(self) -> Iterator[tuple[Key, Value]]:
        """Every series."""
        for (name, labels), count in list(self._counts.items()):
            yield Key("counter", name, labels), Value(count)
        for (name, labels), (counts, total) in list(self._histograms.items()):
            running = 0
            buckets = []
            for bound, count in zip((*BUCKETS, float("inf")), counts, strict=True):
                running += count
                buckets.append((bound, running))
            yield Key("histogram", name, labels), Value(total[0], tuple(buckets))
