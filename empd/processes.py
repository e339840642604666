"""What /proc tells of other processes."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def session_members(session: int) -> dict[int, int]:
    """The processes of a session that are not zombies, and the bytes of memory that each has resident. Reads /proc
    once."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command name may hold spaces and parentheses: fields are counted from the last ")".
        fields = stat[stat.rindex(b")") + 2 :].split()
        if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
            found[int(entry)] = int(fields[21]) * _PAGE_BYTES
    return found
