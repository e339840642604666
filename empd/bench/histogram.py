"""Times in an HDR histogram (Gil Tene's; package `hdrhistogram`, of the extra `report`), which every percentile can be
read from afterwards: it is kept in the figure's line, encoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from empd.bench.running import BenchError

LOWEST_US, HIGHEST_US, DIGITS = 1, 600_000_000, 3
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)


def of(samples_us: Iterable[float]) -> Any:
    """A histogram of them. Raises BenchError where the package is missing."""
    found = _kind()(LOWEST_US, HIGHEST_US, DIGITS)
    for sample in samples_us:
        found.record_value(min(max(int(sample), LOWEST_US), HIGHEST_US))
    return found


def encoded(histogram: Any) -> str:
    """Its standard encoding (V2, compressed, base64), which HdrHistogram's tools in any language read."""
    text: bytes = histogram.encode()
    return text.decode("ascii")


def decoded(text: str) -> Any:
    """The histogram behind `encoded`."""
    return _kind().decode(text)


def curve(histogram: Any) -> list[tuple[float, float]]:
    """(percentile, µs), for a plot."""
    return [(percent, float(histogram.get_value_at_percentile(percent))) for percent in PERCENTILES]


def _kind() -> Any:
    try:
        from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # it ships no types
    except ImportError:
        raise BenchError("latency under load needs hdrhistogram: pip install 'empd[report]'") from None
    return HdrHistogram
