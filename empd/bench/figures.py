"""A measured value beside its bound, and the statistics that make one of many samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

SAMPLES_KEPT_MAX = 200
"""A line holds no more samples than these; of more, so many that stand evenly in their order."""


class Target(NamedTuple):
    """What a value has to reach: at most `value`, or at least. Where it is missed on fewer than `cores` cores, the
    machine is too small for it to say anything."""

    value: float
    at_least: bool = False
    cores: int = 0

    def met_by(self, value: float) -> bool:
        """Whether the value is on the right side."""
        return value >= self.value if self.at_least else value <= self.value

    def verdict(self, value: float, cores: int) -> str:
        """`met`, `missed` or `machine too small`."""
        if self.met_by(value):
            return "met"
        return "missed" if cores >= self.cores else "machine too small"

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {shown(self.value)}"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. `value` is what the target is compared with: the median of `samples`, one for each run,
    or what else `statistic` says. `axes` say where it stands in a plot, `details` are measured beside it, `settings`
    are how it was measured."""

    name: str
    value: float
    unit: str
    samples: Sequence[float]
    statistic: str = "median"
    target: Target | None = None
    axes: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    details: Mapping[str, Any] = {}

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is the better one."""
        return self.unit.endswith("/s") if self.target is None else self.target.at_least

    def as_line(self, scenario: str, cores: int) -> dict[str, Any]:
        """The figure in plain data, with its verdict on a machine of so many cores."""
        target = self.target
        return {
            "scenario": scenario,
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "more_is_better": self.more_is_better,
            "target": None if target is None else target.value,
            "bound": None if target is None else str(target),
            "verdict": None if target is None else target.verdict(self.value, cores),
            "runs": len(self.samples),
            "statistic": self.statistic,
            "min": rounded(min(self.samples)),
            "median": rounded(statistics.median(self.samples)),
            "max": rounded(max(self.samples)),
            "samples": [rounded(sample) for sample in thinned(self.samples)],
            "axes": dict(self.axes),
            "details": {k: rounded(v) if isinstance(v, float) else v for k, v in self.details.items()},
            "settings": dict(self.settings),
        }


class Plot(NamedTuple):
    """A picture of figures of one scenario: those whose axes have `x` (and fit `where`), a line for each `series`.
    `of_samples`: all samples of each `x`, as the share of them that took at most so long; `share` in a figure's axes
    is the percent at which its bound holds."""

    title: str
    x: str
    series: str = ""
    where: Mapping[str, Any] = {}
    log_x: bool = False
    log_y: bool = False
    of_samples: bool = False


class Scenario(NamedTuple):
    """One thing to measure. `measure` takes a size and a `Where`, and yields figures as it gets them. `on_running`:
    it can be measured on a daemon that somebody else has started."""

    name: str
    help: str
    measure: Callable[[Any, Any], Iterator[Figure]]
    full: Any
    quick: Any
    plots: tuple[Plot, ...] = ()
    on_running: bool = False


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank: no value that never was)."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y grows with each unit of x: the least-squares line. Raises ValueError below two distinct x."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def thinned(samples: Sequence[float]) -> Sequence[float]:
    """At most SAMPLES_KEPT_MAX of the samples: all, or evenly from their order, the smallest and the largest
    included."""
    if len(samples) <= SAMPLES_KEPT_MAX:
        return samples
    ordered, last = sorted(samples), len(samples) - 1
    return [ordered[index * last // (SAMPLES_KEPT_MAX - 1)] for index in range(SAMPLES_KEPT_MAX)]


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)


def shown(value: float) -> str:
    """The value for people."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def median_of(name: str, unit: str, samples: Sequence[float], **fields: Any) -> Figure:
    """A figure whose value is the median."""
    return Figure(name=name, value=statistics.median(samples), unit=unit, samples=samples, **fields)
