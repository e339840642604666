"""What a service says about work that was given to it."""

from __future__ import annotations

import enum


class Standing(enum.StrEnum):
    """Absent is not done: it is unknown."""

    RUNNING = "running"  # or waiting there
    TERMINAL = "terminal"
    UNKNOWN = "unknown"
