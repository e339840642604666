"""The kit in an operator's own tests, three lines for a connector:

    from empd.connectors.conformance.pytest import conformance_suite
    from painter import CASE
    test_it_does_what_it_claims = conformance_suite(CASE)

One test for each check; those that the connector does not claim are passed, and say so in the report's properties.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from empd.connectors.conformance.kit import CHECKS, Check, prove
from empd.connectors.conformance.words import Case, Outcome


def conformance_suite(case: Case | Callable[[], Case], checks: Iterable[str] = ()) -> Callable[..., None]:
    """A parametrised test function: all checks, or those named. A function in place of the case is called in each."""
    chosen = set(checks) or set(CHECKS)

    @pytest.mark.parametrize("check", [check for name, check in CHECKS.items() if name in chosen], ids=lambda c: c.name)
    def suite(check: Check, record_property: Callable[[str, Any], None]) -> None:
        finding = asyncio.run(prove(check, case() if callable(case) else case))
        record_property("outcome", finding.outcome.value)
        record_property("seen", finding.seen)
        assert finding.outcome is not Outcome.FAILED, f"{finding.reason} {finding.seen}"

    made: Callable[..., None] = suite
    return made
