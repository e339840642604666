"""Why a child is gone: from how it ended, what it was told, and what its cgroup says."""

from __future__ import annotations

import os
import signal

from empd.lifecycle import Exit
from empd.supervisor.restart import Life, State

_CONDEMNING = frozenset({Exit.CRASHED, Exit.HUNG, Exit.GPU_LOST, Exit.OUT_OF_MEMORY, Exit.DRAINED})


def exit_cause(life: Life, condemned: Exit | None, status: int, out_of_memory: bool) -> Exit:
    """The cause of a death with this wait status; `condemned` is why the ladder was set on the child, if it was."""
    if out_of_memory:
        return Exit.OUT_OF_MEMORY
    if condemned is not None:
        return condemned
    if life.state in (State.RECYCLING, State.DRAINING):
        return Exit.DRAINED if status == 0 else Exit.CRASHED
    if life.state is State.STOPPING:
        return Exit.CLEAN if status == 0 else Exit.CRASHED
    if life.state in (State.DUMPING, State.TERMINATING, State.KILLING):
        # The ladder without a verdict: too slow to start, or a drain or stop past its limit.
        return Exit.HUNG if life.blamed else Exit.DRAINED
    # It left without having been asked, whatever it returned.
    return Exit.CRASHED


def condemnation(cause: int) -> Exit:
    """The cause in a KILL record; a number that means nothing, or no fault, counts as hung."""
    return Exit(cause) if cause in _CONDEMNING else Exit.HUNG


def describe_status(status: int) -> str:
    """A wait status in words."""
    if not os.WIFSIGNALED(status):
        return f"exit status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"
