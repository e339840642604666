"""Endpoints that services announce by themselves, for as long as they repeat it."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from empd import clock
from empd.connectors.registrations import TTL_S, Registration, Registrations
from empd.errors import FailureClass
from empd.web import context
from empd.web.blobs import in_thread
from empd.web.jobs import reply
from empd.web.problems import Problem, invalid

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class EndpointRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An endpoint to be used until `ttl_s` from now. `gpu`: for the workers of that GPU only (index or UUID)."""

    url: Annotated[str, msgspec.Meta(pattern=r"^(https?|wss?|grpcs?)://[^\s]+$", max_length=2000)]
    protocol: Literal["http", "websocket", "grpc"] = "http"
    gpu: int | str | None = None
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = TTL_S
    health_path: str = ""


async def put_endpoint(request: web.Request) -> web.Response:
    """PUT /v1/services/{service}/endpoints/{id}: register, or say that it still is there."""
    service, endpoint_id = _names(request)
    try:
        asked = msgspec.json.decode(await request.read(), type=EndpointRequest)
    except msgspec.DecodeError as error:
        raise invalid("$", str(error)) from None
    entry = Registration(
        service=service,
        id=endpoint_id,
        url=asked.url.rstrip("/"),
        protocol=asked.protocol,
        gpu=asked.gpu,
        health_path=asked.health_path,
    )
    if not await in_thread(functools.partial(_book(request).put, entry, asked.ttl_s)):
        raise Problem(FailureClass.UNAVAILABLE, "too many endpoints are registered", retry_after_s=10)
    return reply({**_shown(entry), "ttl_s": asked.ttl_s})


async def remove_endpoint(request: web.Request) -> web.Response:
    """DELETE /v1/services/{service}/endpoints/{id}."""
    if not await in_thread(functools.partial(_book(request).remove, *_names(request))):
        raise Problem(FailureClass.NOT_FOUND, "no such endpoint is registered")
    return reply({"removed": True})


async def show_endpoints(request: web.Request) -> web.Response:
    """GET /v1/services/{service}/endpoints: those that have not expired."""
    now_ns = clock.now().mono_ns
    service = _service(request)
    return reply(
        {
            "endpoints": [
                {**_shown(each), "expires_in_s": round((each.expires_mono_ns - now_ns) / clock.NS_PER_S, 3)}
                for each in await in_thread(_book(request).living)
                if each.service == service
            ]
        }
    )


def _book(request: web.Request) -> Registrations:
    return Registrations(context.of(request).settings.runtime_dir)


def _shown(entry: Registration) -> dict[str, Any]:
    return {
        "service": entry.service,
        "id": entry.id,
        "url": entry.url,
        "protocol": entry.protocol,
        "gpu": entry.gpu,
        "health_path": entry.health_path,
    }


def _service(request: web.Request) -> str:
    name = request.match_info["service"]
    if name not in context.of(request).mapping.services:
        raise Problem(FailureClass.NOT_FOUND, f"the mapping has no service {name!r}")
    return name


def _names(request: web.Request) -> tuple[str, str]:
    endpoint_id = request.match_info["id"]
    if not _ID.fullmatch(endpoint_id):
        raise invalid("path.id", "accepted: letters, digits, _ . : and -, at most 100")
    return _service(request), endpoint_id
