"""A callable that says how many of its kind run at once, over all workers of a daemon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

WAIT_S = 30.0


def overlapping(payload: dict[str, Any], context: Any) -> dict[str, int]:
    """Counts those that run in this worker and in all, by a file for each.

    Until `slots` of them were seen at once in this worker, each waits for the others: a slow machine is not a lack of
    slots.
    """
    folder, worker = Path(payload["folder"]), str(os.getppid())
    full = folder.parent / f"{folder.name}-full-{worker}"
    mine = folder / f"{worker}-{context.job_id}"
    mine.touch()
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not full.exists() and time.monotonic() < deadline_s:
            if sum(path.name.startswith(f"{worker}-") for path in folder.iterdir()) >= payload["slots"]:
                full.touch()
            time.sleep(0.005)
        time.sleep(0.02)
        running = [path.name.partition("-")[0] for path in folder.iterdir()]
        return {"here": running.count(worker), "all": len(running)}
    finally:
        mine.unlink()
