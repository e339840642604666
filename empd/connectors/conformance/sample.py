"""An operator's function, for the case of `PythonConnector`."""

from __future__ import annotations

import asyncio
from typing import Any

from empd.connectors.context import Context

STEPS = 20


async def work(payload: dict[str, Any], context: Context) -> dict[str, Any]:
    """Takes `duration_s`, and tells how far it is."""
    for step in range(1, STEPS + 1):
        await asyncio.sleep(payload["duration_s"] / STEPS)
        context.progress(step / STEPS)
    return {"steps": STEPS}
