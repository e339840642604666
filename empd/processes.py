"""What can be learned of other processes."""

from __future__ import annotations

import os
import shutil
import sys
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


def stack_dump(pid: int) -> list[str]:
    """The command that writes the stacks of a Python process to its standard output; empty where there is no py-spy."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
    # Without --nonblocking py-spy would stop the process, and could leave it stopped when it is killed itself.
    return [program, "dump", "--nonblocking", "--pid", str(pid)] if program is not None else []
