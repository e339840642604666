"""Where the tasks of this worker wait: its evidence beside the stacks of threads, which only show an idle loop."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterator
from typing import Any

TASKS_MAX = 64
FRAMES_MAX = 40


def watch(loop: asyncio.AbstractEventLoop, evidence_fd: int) -> None:
    """On SIGUSR1 the threads' stacks are written, even if the loop hangs, and the tasks' where it does not."""
    faulthandler.unregister(signal.SIGUSR1)
    loop.add_signal_handler(signal.SIGUSR1, _write, evidence_fd)
    faulthandler.register(signal.SIGUSR1, evidence_fd, all_threads=True, chain=True)


def _write(evidence_fd: int) -> None:
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    lines = [line for task in tasks[:TASKS_MAX] for line in (f"{task.get_name()} waits in", *_frames(task))]
    with contextlib.suppress(OSError):
        os.write(evidence_fd, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))


def _frames(task: asyncio.Task[Any]) -> Iterator[str]:
    """From the task's own function to what it waits for in the end."""
    waiting: Any = task.get_coro()
    for _ in range(FRAMES_MAX):
        frame = next(
            (found for name in ("cr_frame", "gi_frame", "ag_frame") if (found := getattr(waiting, name, None))), None
        )
        if frame is None:
            break
        yield f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        waiting = next(
            (found for name in ("cr_await", "gi_yieldfrom", "ag_await") if (found := getattr(waiting, name, None))),
            None,
        )
    if waiting is not None:
        yield f"  {waiting!r}"[:200]
