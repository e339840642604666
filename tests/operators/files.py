"""Callables that make files, as an operator would write them."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"


async def pictures(payload: dict[str, Any], context: Any) -> dict[str, Any]:
    """Saves `count` files; the first attempts make others, and die or fail at the end when `ends` says so."""
    ends = payload.get("ends", {}).get(str(context.attempt), "well")
    count = payload["count"] + (context.attempt == 1 and ends in ("crash", "fail"))
    refs = [
        await context.assets.save(
            PNG + f"{context.attempt if ends != 'well' else 'final'}-{output}".encode(), output=output
        )
        for output in range(count)
    ]
    if ends == "crash":
        os.abort()
    if ends == "wait":
        while not Path(payload["until"]).exists():
            await asyncio.sleep(0.01)
    if ends == "fail":
        raise RuntimeError("as it was told")
    return {"files": refs}


def text(payload: dict[str, Any], context: Any) -> Any:
    """Saves from a plain function: in a thread, or in a process of its own."""
    return context.assets.save(payload["text"].encode(), name="note.md")


async def streamed(payload: dict[str, Any], context: Any) -> dict[str, Any]:
    """Saves so many MiB from what can be read only once, and tells how much memory this process took meanwhile."""
    block = os.urandom(1 << 20)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(payload["mib"]):
            yield block

    with tempfile.TemporaryFile() as file:
        for _ in range(payload["mib"] + 1):
            file.write(block)
        file.seek(len(block))
        Path("/proc/self/clear_refs").write_text("5")
        before = _peak_kib()
        refs = [await context.assets.save(content) for content in (file, chunks())]
    return {"files": refs, "grown_kib": _peak_kib() - before}


def large(payload: dict[str, Any], context: Any) -> dict[str, Any]:
    """Saves a file of this size, and tells how much memory its worker took meanwhile."""
    block = os.urandom(1 << 20)
    path = Path(payload["path"])
    with path.open("wb") as file:
        for _ in range(payload["mib"]):
            file.write(block)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak_kib()
    began_s = time.monotonic()
    ref = context.assets.save(path)
    return {"file": ref, "grown_kib": _peak_kib() - before, "seconds": time.monotonic() - began_s}


def _peak_kib() -> int:
    """The most memory that this process had since its peak was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])
