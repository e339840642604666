"""The conformance kit: proves what a connector claims, against a service that is broken on purpose.

    from empd.connectors.conformance import Case, Server, prove_all

`empd connectors check NAME` runs it in a terminal, `conformance.pytest.conformance_suite(case)` in an operator's tests.
"""

from __future__ import annotations

from empd.connectors.conformance.builtin import case_of
from empd.connectors.conformance.gate import Fault, Recorded
from empd.connectors.conformance.kit import CHECKS, prove, prove_all
from empd.connectors.conformance.words import NOTHING, Case, Finding, Outcome, Server

__all__ = [
    "CHECKS",
    "NOTHING",
    "Case",
    "Fault",
    "Finding",
    "Outcome",
    "Recorded",
    "Server",
    "case_of",
    "prove",
    "prove_all",
]
