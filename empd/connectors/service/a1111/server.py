"""The calls of the server's API, as the connectors use them."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, Site
from empd.connectors.context import Context
from empd.connectors.failures import NotFound
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.protocol.verdicts import VerdictTable
from empd.connectors.service.a1111.earlier import Place, Standing
from empd.connectors.service.a1111.faults import VERDICTS
from empd.connectors.service.a1111.task import SETUP_FRACTION, Look

CONNECTIONS_PER_JOB = 3
"""One call blocks; others look at it and interrupt it."""

NO_ROUTE = (404, 405)
"""A server without its page (`--nowebui`) does not have the page's routes."""


class A1111Config(HTTPConfig):
    """`operation`: what jobs ask for that do not say; `defaults`: parameters that they leave out. A call blocks until
    its pictures are there, also behind those of others: `read_timeout_s` is long. Below `vram_free_bytes_min` after a
    job, or always with `unload_after_job`, the server lets go of its model."""

    read_timeout_s: float = 3600.0
    response_bytes_max: int = 512 << 20
    health_path: str = "/sdapi/v1/options"
    operation: str = ""
    defaults: dict[str, Any] = {}
    poll_interval_s: float = 0.5
    previews: bool = True
    unload_after_job: bool = False
    vram_free_bytes_min: int = 0


class A1111Server(HTTPConnector):
    """A connector that knows the server's routes."""

    service_type: ClassVar[str] = "a1111"
    Config: ClassVar[type[ConnectorConfig]] = A1111Config
    config: A1111Config
    verdicts: ClassVar[VerdictTable] = VERDICTS

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self.config.connections_max = self.config.connections_max or CONNECTIONS_PER_JOB * site.max_concurrent_jobs

    @property
    def poll_interval_s(self) -> float:
        """How often a task is looked at."""
        return self.config.poll_interval_s

    async def generate(self, route: str, body: dict[str, Any], context: Context) -> Any:
        """The call that blocks. What breaks it is not tried again here: the server may still be at it."""
        return (await self.request("POST", f"/sdapi/v1/{route}", context, json=body, once=True)).value()

    async def look(self, task_id: str, context: Context | None = None) -> Look:
        """By the state of the whole server; a preview only for who shows it (`context`)."""
        skip = "false" if context is not None and self.config.previews else "true"
        answer = await self.request("GET", "/sdapi/v1/progress", params={"skip_current_image": skip}, once=True)
        return look_at(answer.json())

    async def place(self, task_id: str, url: str) -> Place:
        """Where a task is at the server at `url`. Only its page knows what waits, and what has ended lately."""
        asked = {"id_task": task_id, "id_live_preview": -1, "live_preview": False}
        at = "" if url == self.base_url else url
        answer = await self.request("POST", f"{at}/internal/progress", json=asked, accept=NO_ROUTE, repeatable=True)
        told = answer.json() if answer.status not in NO_ROUTE else {}
        if told.get("queued"):
            return Place(Standing.QUEUED)
        if told.get("completed"):
            return Place(Standing.ENDED)
        state = await self.request("GET", f"{at}/sdapi/v1/progress", params={"skip_current_image": "true"})
        look = look_at(state.json())
        if look.task == task_id:  # a task that failed stays the current one
            return Place(Standing.RUNNING if look.working else Standing.ENDED, look)
        return Place(Standing.RUNNING if told.get("active") else Standing.UNKNOWN, look)

    async def interrupt(self, url: str = "") -> None:
        """Whatever runs: see `Task`."""
        at = "" if url == self.base_url else url
        await self.request("POST", f"{at}/sdapi/v1/interrupt", once=True)

    async def checkpoint(self, name: str) -> str:
        """The title of a model, by its title, name or hash. Raises NotFound before the server is stopped by it."""
        for model in await self.listed("sd-models"):
            if name in (model.get("title"), model.get("model_name"), model.get("hash"), model.get("sha256")):
                return str(model["title"])
        raise NotFound(f"the server has no model {name!r}")

    async def options(self) -> dict[str, Any]:
        """All settings."""
        return dict((await self.request("GET", "/sdapi/v1/options")).json())

    async def listed(self, route: str) -> list[dict[str, Any]]:
        """What there is to choose from."""
        return list((await self.request("GET", f"/sdapi/v1/{route}")).json())

    async def vram_free_bytes(self) -> int:
        """Free memory of the GPU; 0: the server does not tell."""
        memory = (await self.request("GET", "/sdapi/v1/memory")).json()
        system = memory.get("cuda", {}).get("system", {})
        return int(system.get("free") or 0)


def look_at(body: dict[str, Any]) -> Look:
    """What `/sdapi/v1/progress` says. While a task is set up its job_count is -1 and its progress means nothing."""
    state = body.get("state") or {}
    count, fraction = int(state.get("job_count") or 0), float(body.get("progress") or 0.0)
    return Look(
        task=str(body.get("current_task") or ""),
        working=count != 0,
        fraction=min(1.0, max(0.0, fraction)) if count > 0 else SETUP_FRACTION if count else 0.0,
        eta_s=float(body.get("eta_relative") or 0.0),
        step=int(state.get("sampling_step") or 0),
        steps=int(state.get("sampling_steps") or 0),
        interrupted=bool(state.get("interrupted")),
        message=str(body.get("textinfo") or ""),
        preview=str(body.get("current_image") or ""),
    )
