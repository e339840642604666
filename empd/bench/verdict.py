"""Whether B differs from A, when both are noisy.

Two ways to an interval for the ratio B / A, both exact for any distribution:

- pairs (runs that alternate, so that each pair met the same machine): the median of the pairs' ratios, with the
  interval between two of them in order that the sign test gives (Thompson 1936);
- two lists (runs of two files, of different times): the Hodges-Lehmann ratio, with the interval that the rank-sum test
  gives (Mann-Whitney 1947). It knows the noise within each run, not what changed on the machine between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.95
SAME_WITHIN = 0.03
"""Ratios that lie within 1 ± this are the same for all who use it."""


class Ratio(NamedTuple):
    """B / A with its interval; `coverage` is the probability with which such an interval holds the true ratio. With few
    runs it can be below CONFIDENCE, and the interval is then all that there is."""

    value: float
    low: float
    high: float
    coverage: float
    method: str

    def verdict(self, more_is_better: bool) -> str:
        """`better`, `worse`, `same` (a difference above SAME_WITHIN is excluded), or `not shown`."""
        if self.low > 1 - SAME_WITHIN and self.high < 1 + SAME_WITHIN:
            return "same"
        if self.coverage < CONFIDENCE or self.low <= 1 <= self.high:
            return "not shown"
        return "better" if (self.low > 1) == more_is_better else "worse"


def of_pairs(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """From (A, B) of each pair; all above zero. Raises ValueError without any."""
    if not pairs:
        raise ValueError("no pairs")
    ratios = sorted(after / before for before, after in pairs)
    count = len(ratios)
    # The interval from the k-th smallest to the k-th largest leaves out the median with probability 2 P(Bin(n, ½) < k).
    cut = 0
    missed = 2 * 0.5**count
    while cut < (count - 1) // 2:
        wider = missed + 2 * math.comb(count, cut + 1) * 0.5**count
        if wider > 1 - CONFIDENCE:
            break
        cut, missed = cut + 1, wider
    return Ratio(median(ratios), ratios[cut], ratios[count - 1 - cut], 1 - missed, "sign test on pairs")


def of_lists(before: Sequence[float], after: Sequence[float]) -> Ratio:
    """From runs of A and runs of B; all above zero. Raises ValueError when either is empty."""
    if not before or not after:
        raise ValueError("no samples")
    ratios = sorted(b / a for a, b in product(before, after))
    cut, missed = _rank_sum_cut(len(before), len(after))
    return Ratio(median(ratios), ratios[cut], ratios[len(ratios) - 1 - cut], 1 - missed, "rank sum of both runs")


def _rank_sum_cut(first: int, second: int) -> tuple[int, float]:
    """(how many ratios to leave out at each end, the probability that the true one is among those left out)."""
    chances = _rank_sum_chances(first, second)
    missed, cut = 2 * chances[0], 0
    while cut + 1 < len(chances) // 2 and missed + 2 * chances[cut + 1] <= 1 - CONFIDENCE:
        cut += 1
        missed += 2 * chances[cut]
    return cut, min(missed, 1.0)


def _rank_sum_chances(first: int, second: int) -> list[float]:
    """The probability of each value 0 … first × second of the Mann-Whitney statistic when nothing differs: the
    coefficients of the Gaussian binomial over their sum."""
    counts = [1]
    for index in range(1, second + 1):
        # times (1 - q^(first + index)) / (1 - q^index), both by running sums over the coefficients
        counts = counts + [0] * first
        top = first + index
        for degree in range(len(counts) - 1, top - 1, -1):
            counts[degree] -= counts[degree - top]
        for degree in range(index, len(counts)):
            counts[degree] += counts[degree - index]
    total = math.comb(first + second, first)
    return [count / total for count in counts]
