"""Callables as an operator would write them."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any


def square(payload: dict[str, float], context: Any) -> dict[str, float]:
    return {"value": payload["x"] ** 2}


def counted(payload: dict[str, str], context: Any) -> dict[str, str]:
    """Leaves a line for each execution: executions are counted from outside the daemon."""
    with open(payload["file"], "a", encoding="utf-8") as file:
        file.write(f"{context.job_id}\n")
        file.flush()
        os.fsync(file.fileno())
    return {"pid": str(os.getpid())}


def chatty(payload: str, context: Any) -> None:
    """Prints a long line, and begins another one."""
    print("a line: " + "x" * 20_000)
    print("half a line on", payload, end="", flush=True, file=getattr(sys, payload))


def slow(payload: dict[str, float], context: Any) -> Iterator[float]:
    steps = 20
    for step in range(steps):
        time.sleep(payload["seconds"] / steps)
        yield (step + 1) / steps


def poison(payload: dict[str, str], context: Any) -> None:
    """Leaves its line, then takes its worker along."""
    counted(payload, context)
    os.abort()


def gated(payload: dict[str, str], context: Any) -> dict[str, str]:
    """Leaves a line as `counted` does, then works until the file `gate` is there. Does not look at a cancel."""
    done = counted(payload, context)
    while not os.path.exists(payload["gate"]):
        time.sleep(0.005)
    return done


def checksum(payload: bytes, context: Any) -> dict[str, int]:
    """A small result of a payload of any size."""
    return {"bytes": len(payload), "crc32": zlib.crc32(payload)}
