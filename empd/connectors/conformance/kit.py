"""Runs the checks on a case."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from empd.connectors.conformance.checks import faults, jobs, life, messages, recovery
from empd.connectors.conformance.words import Case, Failed, Finding, NotClaimed, Outcome
from empd.connectors.conformance.world import World
from empd.connectors.failures import describe

CHECK_S_MAX = 45.0
"""A check that takes longer has failed."""


class Check(NamedTuple):
    """One thing to prove; `reason` is the first line of the check's docstring."""

    name: str
    prove: Callable[[World], Awaitable[str]]

    @property
    def reason(self) -> str:
        """What it proves, in one line."""
        return (self.prove.__doc__ or "").strip().partition("\n")[0]


_ALL = (
    (
        life,
        "unknown_key",
        "wrong_type",
        "close_twice",
        "open_again",
        "nothing_left",
        "health",
        "models",
        "service_info",
    ),
    (jobs, "one_job", "progress", "cancel_before", "cancel_while_submitting", "cancel_running", "cancel_after"),
    (jobs, "cancel_neighbour"),
    (recovery, "resume", "same_submission"),
    (faults, "transient_fault", "lasting_fault", "final_fault", "retry_after_seconds", "retry_after_date"),
    (faults, "cut_answer", "stalled_answer", "status_codes", "error_in_good_answer", "bounded_answer", "no_secret"),
    (messages, "garbage_messages", "foreign_messages", "repeated_messages"),
    (messages, "dropped_connection", "half_closed_connection", "silent_connection"),
)

CHECKS: dict[str, Check] = {
    name: Check(name, getattr(module, name)) for module, *names in _ALL for name in map(str, names)
}


async def prove(check: Check, case: Case) -> Finding:
    """One check on one case, in a world of its own. Raises nothing."""
    if check.name in case.waived:
        return Finding(check.name, Outcome.NOT_CLAIMED, case.waived[check.name], check.reason)
    try:
        async with asyncio.timeout(CHECK_S_MAX), World(case) as world:
            seen = await check.prove(world)
        return Finding(check.name, Outcome.PASSED, seen, check.reason)
    except NotClaimed as why:
        return Finding(check.name, Outcome.NOT_CLAIMED, str(why), check.reason)
    except Failed as failure:
        seen = str(failure)
    except TimeoutError:
        seen = f"not done after {CHECK_S_MAX:g} s"
    except Exception as error:  # a connector, or its server, is foreign code
        seen = f"it raised {describe(error)}"
    return Finding(check.name, Outcome.FAILED, seen, check.reason)


async def prove_all(case: Case, names: Iterable[str] = ()) -> list[Finding]:
    """All checks, or those named, in the order of the table."""
    chosen = set(names) or set(CHECKS)
    return [await prove(check, case) for name, check in CHECKS.items() if name in chosen]
