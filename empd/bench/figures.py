"""A measured value beside its target, and the statistics that make one of many samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec


class Target(NamedTuple):
    """What a value has to reach: at most `value`, or at least."""

    value: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """Whether the value is on the right side."""
        return value >= self.value if self.at_least else value <= self.value


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. `value` is what the target is compared with, usually the median of `samples`, one
    for each run; `details` are measured beside it, `settings` are how it was measured."""

    name: str
    value: float
    unit: str
    samples: Sequence[float]
    target: Target | None = None
    settings: dict[str, Any] = {}
    details: dict[str, Any] = {}

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.target.met_by(self.value)

    def as_line(self) -> dict[str, Any]:
        """The figure in plain data."""
        target = self.target
        return {
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "target": None if target is None else target.value,
            "bound": None if target is None else ("at least" if target.at_least else "at most"),
            "met": self.met,
            "runs": len(self.samples),
            "min": rounded(min(self.samples)),
            "median": rounded(statistics.median(self.samples)),
            "max": rounded(max(self.samples)),
            "details": {k: rounded(v) if isinstance(v, float) else v for k, v in self.details.items()},
            "settings": self.settings,
        }


class Scenario(NamedTuple):
    """One thing to measure. `measure` takes a size and a place for state, and yields figures as it gets them."""

    name: str
    help: str
    measure: Callable[[Any, str], Iterator[Figure]]
    full: Any
    quick: Any


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank: no value that never was)."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)


def median_of(name: str, unit: str, samples: Sequence[float], **fields: Any) -> Figure:
    """A figure whose value is the median."""
    return Figure(name=name, value=statistics.median(samples), unit=unit, samples=samples, **fields)
