"""Exit codes: what a script can tell from `$?`."""

from __future__ import annotations

import enum

from empd.errors import (
    ConfigError,
    EmpdError,
    JobFailed,
    NotRunning,
    Refused,
    ResultTimeout,
    StateLocked,
)


class ExitCode(enum.IntEnum):
    """The table in `empd --help` and the README is made from these."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    REFUSED = 4
    TIMED_OUT = 5
    OPERATOR = 78
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the job failed, or problems were found",
    ExitCode.USAGE: "wrong command line, configuration or file",
    ExitCode.NOT_RUNNING: "no daemon answers",
    ExitCode.REFUSED: "the daemon refused",
    ExitCode.TIMED_OUT: "timed out; the job goes on",
    ExitCode.OPERATOR: "`empd run`: the state needs its operator; the log says why",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
}

_BY_ERROR: tuple[tuple[type[EmpdError], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (NotRunning, ExitCode.NOT_RUNNING),
    (Refused, ExitCode.REFUSED),
    (ResultTimeout, ExitCode.TIMED_OUT),
    (StateLocked, ExitCode.REFUSED),
    (JobFailed, ExitCode.FAILED),
)


def code_of(error: EmpdError) -> ExitCode:
    """The exit code for an error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)
