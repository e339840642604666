"""/healthz, /readyz, /v1/status and the parts of it: what the broker says beside what the board shows."""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any

from aiohttp import web

from empd import clock
from empd.errors import NotRunning
from empd.job import format_id
from empd.lifecycle import ChildKind
from empd.memory.board import UNKNOWN, SlotView
from empd.web import context, render, servers
from empd.web.jobs import reply
from empd.web.release import version


async def healthz(_: web.Request) -> web.Response:
    """GET /healthz: this process lives."""
    return reply({"status": "ok", "pid": os.getpid(), "version": version()})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: 200 when a job submitted now would be accepted and run, else 503 with the reasons."""
    reasons = await not_ready(context.of(request))
    return reply({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


async def not_ready(ctx: context.Context) -> list[str]:
    """Why a job submitted now would not be accepted, or not run; empty when it would."""
    try:
        broker = await ctx.gateway.status()
    except NotRunning as error:
        return [f"the broker does not answer: {error}"]
    reasons = [str(each) for each in _list(broker.get("problems"))]
    if ctx.draining:
        reasons.append("the daemon is draining")
    reasons += _full_disk(ctx)
    return reasons


def _full_disk(ctx: context.Context) -> list[str]:
    settings = ctx.settings
    try:
        free = shutil.disk_usage(settings.state_dir).free
    except OSError as error:
        return [f"the state directory cannot be looked at: {error.strerror}"]
    if free < settings.disk_free_min_bytes:
        return [f"the disk has {free} bytes free, disk_free_min_bytes = {settings.disk_free_min_bytes}"]
    return []


def _list(value: Any) -> list[Any]:
    """What may be a list, one text, or nothing."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value] if value else []


async def status(request: web.Request) -> web.Response:
    """GET /v1/status: everything at a glance."""
    ctx = context.of(request)
    broker, error = await ask_broker(ctx)
    views = ctx.board.read_taken()
    body = {
        "version": version(),
        "at": render.time_of(clock.now().wall_ns),
        "ready": not (reasons := await not_ready(ctx)),
        "reasons": reasons,
        "broker": render.jsonable(broker) if broker is not None else None,
        "broker_error": error,
        "children": [child(view) for view in views],
        "workers": _workers(views, broker),
        "services": _services(ctx, views, broker),
        "gpus": gpus_of(views),
        "supervisor": _supervisor(),
        "history": {"through_seq": ctx.archive.through_seq},
        "mapping": ctx.mapping.source,
        "durability": ctx.settings.durability,
    }
    return reply(body)


async def ask_broker(ctx: context.Context) -> tuple[dict[str, Any] | None, str]:
    """(the broker's status, "") or (None, why there is none)."""
    try:
        return await ctx.gateway.status(), ""
    except NotRunning as error:
        return None, str(error)


def _supervisor() -> dict[str, Any]:
    """How the supervisor contains its children: a child in a cgroup of its own was delegated one."""
    return {"pid": os.getppid(), "containment": "cgroup" if _own_cgroup() else "process group"}


@functools.cache
def _own_cgroup() -> bool:
    """Whether this process was put where the supervisor is not; nobody moves it later."""
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as lines:
            mine = lines.read()
        with open(f"/proc/{os.getppid()}/cgroup", encoding="ascii", errors="replace") as lines:
            return lines.read() != mine
    except OSError:
        return False


def child(view: SlotView) -> dict[str, Any]:
    """One child as the board shows it."""
    identity, activity = view.identity, view.own_activity
    if identity is None:
        return {}
    now_ns = clock.now().mono_ns
    body: dict[str, Any] = {
        "name": identity.name,
        "kind": identity.kind.name.lower(),
        "pid": identity.pid,
        "generation": identity.generation,
        "state": identity.state.name.lower(),
        "up_s": _age_s(now_ns, identity.started_mono_ns),
        "restarts": identity.restarts,
        "last_exit": identity.last_exit.name.lower() if identity.last_exit is not None else None,
        "device_uuid": identity.device_uuid or None,
        "virtual": identity.virtual,
    }
    if activity is not None:
        body |= {
            "heartbeat_age_s": _age_s(now_ns, activity.heartbeat_mono_ns),
            "jobs_running": activity.jobs_running,
            "jobs_done": activity.jobs_done,
            "jobs_failed": activity.jobs_failed,
            "rss_bytes": activity.rss_bytes,
            "job": format_id(activity.job_id) if activity.job_id else None,
            "progress": activity.progress if activity.job_id else None,
        }
    return body | servers.shown(view) if identity.kind is ChildKind.SERVER else body


def _age_s(now_ns: int, then_ns: int) -> float:
    return round(max(0, now_ns - then_ns) / clock.NS_PER_S, 3) if then_ns else 0.0


# --- workers, services, GPUs, connectors -----------------------------------------------------------------------------


async def workers(request: web.Request) -> web.Response:
    """GET /v1/workers."""
    ctx = context.of(request)
    broker, _ = await ask_broker(ctx)
    return reply({"workers": _workers(ctx.board.read_taken(), broker)})


def _workers(views: list[SlotView], broker: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Workers on the board, with what the broker says of each."""
    said = {each.get("name"): each for each in _list((broker or {}).get("workers")) if isinstance(each, dict)}
    bodies = [
        {**child(view), "broker": _said(said.pop(view.identity.name, None))}
        for view in views
        if view.identity is not None and view.identity.kind is ChildKind.WORKER
    ]
    bodies += [{"name": name, "state": "unseen", "broker": _said(each)} for name, each in said.items()]
    return bodies


def _said(worker: dict[str, Any] | None) -> Any:
    """What the broker says of a worker, its jobs by the ids that people see."""
    if worker is None:
        return None
    jobs = [format_id(number) for number in _list(worker.get("jobs")) if isinstance(number, int)]
    return render.jsonable({**worker, "jobs": jobs})


async def services(request: web.Request) -> web.Response:
    """GET /v1/services: job types, who runs them, how many wait, and why none runs where none does."""
    ctx = context.of(request)
    broker, _ = await ask_broker(ctx)
    return reply({"services": _services(ctx, ctx.board.read_taken(), broker)})


def _services(ctx: context.Context, views: list[SlotView], broker: dict[str, Any] | None) -> list[dict[str, Any]]:
    said = (broker or {}).get("services")
    said = said if isinstance(said, dict) else {}
    bodies: dict[str, dict[str, Any]] = {}
    for worker_name, worker in ctx.mapping.workers.items():
        for job_type, service_name in worker.routes().items():
            service = ctx.mapping.services.get(service_name)
            body = bodies.setdefault(job_type, {"name": job_type, "worker_types": [], "connectors": [], "servers": []})
            body["worker_types"].append(worker_name)
            found = servers.instances_of(ctx, views, service_name)
            body["servers"] += [each for each in found if each not in body["servers"]]
            if service is not None and service.connector not in body["connectors"]:
                body["connectors"].append(service.connector)
    for name in said:
        bodies.setdefault(str(name), {"name": str(name), "worker_types": [], "connectors": [], "servers": []})
    facts = facts_of(ctx, views)
    for name, body in bodies.items():
        known = said.get(name)
        body["broker"] = render.jsonable(known) if isinstance(known, dict) else None
        body["instances"] = [each for each in facts if name in _job_types(ctx, each)]
    return [bodies[name] for name in sorted(bodies)]


def facts_of(ctx: context.Context, views: list[SlotView]) -> list[dict[str, Any]]:
    """What living workers say of their services."""
    living = [view.identity.name for view in views if view.identity is not None]
    return [render.jsonable(each) for each in ctx.facts.of(living)]


def _job_types(ctx: context.Context, facts: dict[str, Any]) -> list[str]:
    """The job types that this service of this worker runs."""
    worker = ctx.mapping.workers.get(facts.get("worker_type", ""))
    if worker is None:
        return []
    return [job_type for job_type, service in worker.routes().items() if service == facts["service"]]


async def gpus(request: web.Request) -> web.Response:
    """GET /v1/gpus: the devices that workers are pinned to; virtual ones say so."""
    return reply({"gpus": gpus_of(context.of(request).board.read_taken())})


def gpus_of(views: list[SlotView]) -> list[dict[str, Any]]:
    """Devices in the order of their workers."""
    found: dict[str, dict[str, Any]] = {}
    for view in views:
        identity = view.identity
        if identity is None or not identity.device_uuid:
            continue
        body = found.setdefault(
            identity.device_uuid,
            {"uuid": identity.device_uuid, "virtual": identity.virtual, "workers": [], "servers": []},
        )
        body["servers" if identity.kind is ChildKind.SERVER else "workers"].append(identity.name)
        readings = view.gauges
        if readings is not None and readings.at_mono_ns:
            body |= {
                name: None if value == UNKNOWN else value
                for name, value in readings._asdict().items()
                if name not in ("at_mono_ns", "flags", "processes_memory_bytes")
            }
            body["age_s"] = _age_s(clock.now().mono_ns, readings.at_mono_ns)
    return list(found.values())


async def connectors(request: web.Request) -> web.Response:
    """GET /v1/connectors: the mapping's connectors, the services that use each, and what every worker's instance says
    of itself: state, configuration without secrets, plugins, what it reports."""
    ctx = context.of(request)
    mapping, facts = ctx.mapping, facts_of(ctx, ctx.board.read_taken())
    bodies: dict[str, dict[str, Any]] = {
        name: {"name": name, "path": entry.path or None, "description": entry.description, "services": []}
        for name, entry in mapping.connectors.items()
    }
    for service_name, service in mapping.services.items():
        body = bodies.setdefault(
            service.connector, {"name": service.connector, "path": None, "description": None, "services": []}
        )
        body["services"].append(service_name)
    for body in bodies.values():
        body["instances"] = [each for each in facts if each["service"] in body["services"]]
    return reply({"connectors": [bodies[name] for name in sorted(bodies)]})
