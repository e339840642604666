"""The servers that the daemon runs for internal services: their state from the board, their output from their files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from aiohttp import web

from empd import clock
from empd.connectors.redaction import Redaction, secrets_in
from empd.errors import FailureClass
from empd.internal import log_path, name_at, offset_of
from empd.lifecycle import ChildKind
from empd.mapping import Mapping
from empd.memory.board import UNKNOWN, SlotView
from empd.web import context
from empd.web.jobs import reply
from empd.web.problems import Problem, invalid

LINES_DEFAULT = 200
LINES_MAX = 10_000
_TAIL_BYTES_MAX = 1 << 20


def instances_of(ctx: context.Context, views: list[SlotView], service: str) -> list[dict[str, Any]]:
    """The instances of a service's server, in the order of their ports; none for an external service."""
    entry = ctx.mapping.services.get(service)
    if entry is None or entry.server is None:
        return []
    found = []
    for view in views:
        identity = view.identity
        if identity is None or identity.kind is not ChildKind.SERVER or identity.name.partition("@")[0] != service:
            continue
        up_s = max(0, clock.now().mono_ns - identity.started_mono_ns) / clock.NS_PER_S if identity.pid else None
        index = offset_of(identity.name, entry.server)
        found.append({"service": service, "index": index, **shown(view), "up_s": up_s and round(up_s, 3)})
    return sorted(found, key=lambda each: each["index"])


def shown(view: SlotView) -> dict[str, Any]:
    """What a server's slot says beside what every child's does."""
    identity, activity, gauges = view.identity, view.own_activity, view.gauges
    if identity is None:
        return {}
    pid, port = activity.spares[:2] if activity is not None and identity.pid else (0, 0)
    vram_bytes = gauges.processes_memory_bytes if gauges is not None and identity.pid else UNKNOWN
    return {
        "name": identity.name,
        "state": identity.state.name.lower(),
        "server_pid": pid or None,
        "port": port or None,
        "restarts": identity.restarts,
        "last_exit": identity.last_exit.name.lower() if identity.last_exit is not None else None,
        "server_rss_bytes": activity.rss_bytes if activity is not None and pid else None,
        "server_vram_bytes": None if vram_bytes == UNKNOWN else vram_bytes,
    }


async def server_log(request: web.Request) -> web.Response:
    """GET /v1/services/{service}/instances/{index}/log: the last lines that a server of the daemon's own wrote, and
    what became of it. `index` counts the service's ports from its base port."""
    ctx = context.of(request)
    service, index = request.match_info["service"], request.match_info["index"]
    entry = ctx.mapping.services.get(service)
    if entry is None or entry.server is None:
        raise Problem(FailureClass.NOT_FOUND, f"the daemon runs no server for a service {service[:80]!r}")
    if not (index.isascii() and index.isdigit() and len(index) <= 6):
        raise invalid("path.index", f"a whole number, not {index[:50]!r}")
    wanted = _lines(request.query.get("lines"))
    name = name_at(service, entry.server, entry.is_gpu_bound, int(index))
    path = log_path(ctx.settings.state_dir, name)
    text = await asyncio.get_running_loop().run_in_executor(None, tail, path)
    if text is None:
        raise Problem(FailureClass.NOT_FOUND, f"{name} has written nothing yet, or there is no such instance")
    lines = _redaction(ctx.mapping, service)(text).splitlines()[-wanted:]
    return reply({"service": service, "index": int(index), "name": name, "lines": lines})


def tail(path: Path, bytes_max: int = _TAIL_BYTES_MAX) -> str | None:
    """The end of a server's output, whole lines only; None when there is no output."""
    parts: list[bytes] = []
    left = bytes_max
    for file in (path, path.with_name(f"{path.name}.1")):
        try:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - left))
                data = stream.read(left)
        except FileNotFoundError:
            continue
        if len(data) < size:
            data = data[data.find(b"\n") + 1 :]
        parts.insert(0, data)
        left -= size
        if left <= 0:
            break
    return b"".join(parts).decode(errors="replace") if parts else None


def _lines(text: str | None) -> int:
    if text is None:
        return LINES_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= LINES_MAX):
        raise invalid("query.lines", f"a whole number from 1 to {LINES_MAX}, not {text[:50]!r}")
    return int(text)


def _redaction(mapping: Mapping, service: str) -> Redaction:
    """Hides the secrets that the service and its workers require, and those that its entry holds."""
    entry = mapping.services[service]
    names = set(entry.required_env)
    for worker in mapping.workers.values():
        if service in worker.services:
            names |= {*worker.required_env}
    redact = Redaction()
    redact.learn(os.environ.get(name, "") for name in names)
    redact.learn(secrets_in([entry.api_config, entry.server.environment if entry.server is not None else {}]))
    return redact
