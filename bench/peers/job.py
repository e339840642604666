"""The job of all peers: give back what came. A payload that begins with `HOLD` names a file: the first to run it notes
itself there and stays until it is killed; whoever runs it next notes itself and gives it back."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path
from typing import NamedTuple

HOLD = b"\0hold\0"
_HOLD_TEXT = base64.b64encode(HOLD).decode()
HELD_S = 120.0


def run(payload: bytes, at: int = 0) -> bytes:
    """The work itself; the payload begins at this byte."""
    if payload.startswith(HOLD, at):
        _hold(payload[at:])
    return payload


def run_text(payload: str) -> str:
    """The same for a payload in base64."""
    if payload.startswith(_HOLD_TEXT):
        _hold(base64.b64decode(payload))
    return payload


def process(payload: bytes, context: object) -> bytes:
    """The same as a callable of empd's PythonConnector."""
    return run(payload)


def holding(file: Path) -> bytes:
    """The payload of a job that is to be caught in the middle; its starts are noted in `file`."""
    return HOLD + os.fsencode(file)


class Start(NamedTuple):
    """One start of such a job: where, and when (steady time of this machine)."""

    pid: int
    at_s: float


def starts(file: Path) -> list[Start]:
    """Those so far."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Start(int(pid), float(at_s)) for pid, at_s in map(str.split, lines)]


def _hold(payload: bytes) -> None:
    file = Path(os.fsdecode(payload.removeprefix(HOLD)))
    with file.open("a") as notes:
        notes.write(f"{os.getpid()} {time.monotonic()}\n")
    if len(starts(file)) == 1:
        time.sleep(HELD_S)
