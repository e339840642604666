"""What a fork copies and a child must not keep."""

from __future__ import annotations

import os
from collections.abc import Iterable


def close_all_but(kept: Iterable[int]) -> None:
    """Closes every descriptor of this process that is not in `kept`."""
    low = 0
    for fd in sorted(set(kept)):
        # An empty range would not be one to the kernel: its end would wrap around.
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
