"""Why a child is gone, and how that is logged."""

from __future__ import annotations

import json
import logging
import signal
import sys

import pytest

from empd.lifecycle import Exit
from empd.supervisor.log import JsonLines
from empd.supervisor.restart import LIVE, Life, State
from empd.supervisor.verdict import condemnation, describe_status, exit_cause

KILLED = int(signal.SIGKILL)


@pytest.mark.parametrize(
    ("state", "status", "cause"),
    [
        (State.STARTING, 0, Exit.CRASHED),
        (State.READY, 0, Exit.CRASHED),
        (State.READY, KILLED, Exit.CRASHED),
        (State.HALF_OPEN, 256, Exit.CRASHED),
        (State.RECYCLING, 0, Exit.DRAINED),
        (State.RECYCLING, KILLED, Exit.CRASHED),
        (State.DRAINING, 0, Exit.DRAINED),
        (State.DRAINING, KILLED, Exit.CRASHED),
        (State.STOPPING, 0, Exit.CLEAN),
        (State.STOPPING, 256, Exit.CRASHED),
        (State.DUMPING, 0, Exit.DRAINED),
        (State.KILLING, KILLED, Exit.DRAINED),
    ],
)
def test_the_cause_follows_from_what_the_child_was_told(state: State, status: int, cause: Exit):
    assert exit_cause(Life(state), None, status, False) is cause


def test_a_blamed_child_was_hung():
    assert exit_cause(Life(State.TERMINATING, blamed=True), None, 0, False) is Exit.HUNG


@pytest.mark.parametrize("state", sorted(LIVE))
def test_a_verdict_outweighs_the_state_and_the_kernel_outweighs_the_verdict(state: State):
    assert exit_cause(Life(state), Exit.GPU_LOST, KILLED, False) is Exit.GPU_LOST
    assert exit_cause(Life(state), Exit.GPU_LOST, KILLED, True) is Exit.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("number", "cause"), [(Exit.HUNG, Exit.HUNG), (Exit.GPU_LOST, Exit.GPU_LOST), (0, Exit.HUNG), (250, Exit.HUNG)]
)
def test_a_condemnation_without_sense_means_hung(number: int, cause: Exit):
    assert condemnation(number) is cause


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit status 0"), (256 * 70, "exit status 70"), (9, "killed by SIGKILL"), (45, "signal 45")],
)
def test_a_wait_status_is_put_in_words(status: int, words: str):
    assert words in describe_status(status)


def test_a_log_line_is_one_json_object():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("empd.x", logging.ERROR, "", 0, "%s: \n é", ("gone",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["level"], read["logger"], read["event"]) == ("error", "empd.x", "gone: \n é")
    assert "ValueError: two" in read["exception"]
    assert read["timestamp"].endswith("Z")
