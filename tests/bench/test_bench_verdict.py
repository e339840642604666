"""The statistics of a comparison: exact where a distribution is known, and true to what intervals promise."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.bench import verdict
from empd.bench.verdict import Ratio, of_lists, of_pairs

times = st.floats(0.01, 1e6)
runs = st.lists(times, min_size=1, max_size=12)
pairs_of = st.lists(st.tuples(times, times), min_size=1, max_size=12)


@settings(deadline=None)
@given(pairs_of)
def test_an_interval_of_pairs_holds_its_ratio_and_only_ratios_that_were(pairs: list[tuple[float, float]]) -> None:
    found = of_pairs(pairs)
    ratios = [after / before for before, after in pairs]
    assert found.low <= found.value <= found.high
    assert found.low in ratios
    assert found.high in ratios


@settings(deadline=None)
@given(runs, runs)
def test_an_interval_of_lists_holds_its_ratio(before: list[float], after: list[float]) -> None:
    found = of_lists(before, after)
    assert found.low <= found.value <= found.high
    assert 0 <= found.coverage <= 1


@settings(deadline=None)
@given(pairs_of, st.integers(-3, 3))
def test_ratios_scale_with_b(pairs: list[tuple[float, float]], power: int) -> None:
    factor = 2.0**power  # exact in floats
    one, other = of_pairs(pairs), of_pairs([(before, after * factor) for before, after in pairs])
    assert other[:3] == tuple(value * factor for value in one[:3])


@settings(deadline=None)
@given(runs, runs)
def test_a_against_b_is_b_against_a_turned_over(before: list[float], after: list[float]) -> None:
    one, other = of_lists(before, after), of_lists(after, before)
    assert one.low == pytest.approx(1 / other.high)
    assert one.high == pytest.approx(1 / other.low)


@pytest.mark.parametrize(("count", "coverage"), [(1, 0.0), (5, 0.9375), (6, 0.96875), (9, 0.9609375)])
def test_coverage_of_the_sign_test(count: int, coverage: float) -> None:
    assert of_pairs([(1.0, 1.0 + n) for n in range(count)]).coverage == pytest.approx(coverage)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 2), (4, 4), (5, 3)])
def test_chances_of_the_rank_sum_are_those_of_counting(first: int, second: int) -> None:
    counts = [0] * (first * second + 1)
    for mine in combinations(range(first + second), first):
        counts[sum(mine) - first * (first - 1) // 2] += 1
    total = math.comb(first + second, first)
    assert verdict._rank_sum_chances(first, second) == pytest.approx([count / total for count in counts])


@pytest.mark.parametrize("kind", ["pairs", "lists"])
def test_intervals_hold_the_true_ratio_as_often_as_they_say(kind: str) -> None:
    chance, held, rounds = random.Random(7), 0, 400
    for _ in range(rounds):
        before = [chance.lognormvariate(0, 0.4) for _ in range(7)]
        after = [1.3 * chance.lognormvariate(0, 0.4) for _ in range(7)]
        found = of_pairs(list(zip(before, after, strict=True))) if kind == "pairs" else of_lists(before, after)
        held += found.low <= 1.3 <= found.high
    # Four standard errors below what is said.
    assert held / rounds >= found.coverage - 4 * math.sqrt(found.coverage * (1 - found.coverage) / rounds)


@pytest.mark.parametrize(
    ("low", "high", "coverage", "more_is_better", "expected"),
    [
        (1.1, 1.3, 0.96, True, "better"),
        (1.1, 1.3, 0.96, False, "worse"),
        (0.7, 0.9, 0.96, True, "worse"),
        (0.7, 0.9, 0.96, False, "better"),
        (0.9, 1.3, 0.96, True, "not shown"),
        (0.98, 1.02, 0.96, True, "same"),
        (1.01, 1.02, 0.96, True, "same"),
        (1.1, 1.3, 0.5, True, "not shown"),
    ],
)
def test_the_verdict(low: float, high: float, coverage: float, more_is_better: bool, expected: str) -> None:
    assert Ratio((low + high) / 2, low, high, coverage, "").verdict(more_is_better) == expected


def test_without_samples_there_is_no_ratio() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        of_pairs([])
    with pytest.raises(ValueError, match="no samples"):
        of_lists([1.0], [])
