"""What a whole daemon can tell about itself when a test has waited in vain: for the message of its failure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from empd.errors import EmpdError
from empd.lifecycle import evidence_path
from tests.box import Box

LOG_LINES = 60
SERVER_LOG_LINES = 15
EVENTS_S = 2.0
JOBS_MAX = 3
TOOL_S_MAX = 20.0
NO_WORKERS = ("broker", "web", "telemetry")


@contextlib.contextmanager
def explained(box: Box, *jobs: Any) -> Iterator[None]:
    """A failure inside is raised with what is known of the daemon, and of those of `jobs` that have not ended."""
    try:
        yield
    except (AssertionError, EmpdError, OSError) as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{evidence(box, jobs)}") from error


def evidence(box: Box, jobs: Any = ()) -> str:
    """Status, services, workers, unfinished jobs with their events, the workers' stacks, the last lines of all logs."""
    parts: list[tuple[str, Callable[[], str]]] = [("client.status()", partial(_status, box))]
    parts += [(path, partial(_get, box, path)) for path in ("/v1/services", "/v1/workers")]
    parts.append(("unfinished jobs", lambda: "\n".join(_unfinished(box, jobs))))
    workers = [(name, pid) for name, pid in box.children().items() if name not in NO_WORKERS and "@" not in name]
    parts += [(f"threads of {name}, pid {pid}", partial(_threads, pid)) for name, pid in workers]
    parts += [(f"tasks of {name}", partial(_tasks, box, name)) for name, _ in workers]
    logs = sorted((box.state_dir / "servers").glob("*.log"))
    parts += [(f"end of {path.name}", partial(_tail, path, SERVER_LOG_LINES)) for path in logs]
    parts.append(("end of the daemon's log", partial(_tail, box.log_path, LOG_LINES)))
    return "\n".join(f"--- {title}\n{_told(make)}" for title, make in parts)


def _told(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:  # the daemon may be in any state; what it cannot tell must not hide what it can
        return f"{type(error).__name__}: {error}"


def _status(box: Box) -> str:
    with box.client(connect_timeout_s=5) as client:
        return json.dumps(client.status(), default=repr)


def _get(box: Box, path: str) -> str:
    with urllib.request.urlopen(box.http() + path, timeout=5) as answer:
        return json.dumps(json.load(answer))


def _unfinished(box: Box, jobs: Any) -> Iterator[str]:
    left = [job for job in jobs if _is_unfinished(job)]
    yield f"{len(left)} of {len(jobs)}: {', '.join(job.id for job in left[:20])}"
    for job in left[:JOBS_MAX]:
        yield _told(partial(_get, box, f"/v1/jobs/{job.id}"))
        yield _told(partial(_events, box, job.id))


def _is_unfinished(job: Any) -> bool:
    try:
        return job.status().state not in ("completed", "failed", "cancelled", "expired", "dead")
    except EmpdError:
        return True


def _events(box: Box, job_id: str) -> str:
    """The events so far; the stream of an unfinished job goes on, and is left."""
    found: list[str] = []
    end_s = time.monotonic() + EVENTS_S
    with (
        contextlib.suppress(TimeoutError),
        urllib.request.urlopen(f"{box.http()}/v1/jobs/{job_id}/events", timeout=EVENTS_S) as answer,
    ):
        while time.monotonic() < end_s and (line := answer.readline()):
            found += [line.decode().strip()] if line.startswith(b"data: ") else []
    return "\n".join(found)


def _threads(pid: int) -> str:
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        return "no py-spy here"
    ended = subprocess.run(
        [program, "dump", "--nonblocking", "--pid", str(pid)],
        capture_output=True,
        text=True,
        timeout=TOOL_S_MAX,
        check=False,
    )
    return ended.stdout + ended.stderr


def _tasks(box: Box, name: str) -> str:
    """What the worker itself writes when it is asked by a signal."""
    table = json.loads((box.runtime_dir / "supervisor.json").read_text())
    (child,) = [child for child in table["children"] if child["name"] == name]
    path = evidence_path(box.runtime_dir, child["generation"])
    before = path.read_bytes() if path.exists() else b""
    os.kill(child["pid"], signal.SIGUSR1)
    end_s = time.monotonic() + EVENTS_S
    while not (found := path.read_bytes()[len(before) :]).endswith(b"\n") or b" waits in" not in found:
        if time.monotonic() > end_s:
            break
        time.sleep(0.05)
    return found.decode(errors="replace")


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
