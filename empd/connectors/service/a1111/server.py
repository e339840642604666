"""The calls of the server's API, as the connectors use them."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, Site
from empd.connectors.context import Context
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.protocol.verdicts import VerdictTable
from empd.connectors.service.a1111.faults import VERDICTS
from empd.connectors.service.a1111.task import SETUP_FRACTION, Look, Standing

CONNECTIONS_PER_JOB = 3
"""One call blocks; others look at it and interrupt it."""

NO_ROUTE = (404, 405)
NO_PAGE = (401, 403, *NO_ROUTE)
"""A server without its page (`--nowebui`) does not have the page's routes; a proxy may let nobody see them."""

NOT_TASKS = ("extras", "interrogate")
"""What the server works on without an id, while the last task that failed still counts as the current one."""


class A1111Config(HTTPConfig):
    """`operation`: what jobs ask for that do not say; `defaults`: parameters that they leave out. A call blocks until
    its pictures are there, also behind those of others: `read_timeout_s` is long. `exclusive`: nobody else uses the
    server, so that what runs is known to be a job's own even where no page says so. Below `vram_free_bytes_min` after a
    job, or always with `unload_after_job`, the server lets go of its model."""

    read_timeout_s: float = 3600.0
    response_bytes_max: int = 512 << 20
    health_path: str = "/sdapi/v1/options"
    operation: str = ""
    defaults: dict[str, Any] = {}
    poll_interval_s: float = 0.5
    previews: bool = True
    exclusive: bool = False
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
        self._calls: set[str] = set()
        self._has_page = True

    @property
    def poll_interval_s(self) -> float:
        """How often a task is looked at."""
        return self.config.poll_interval_s

    async def generate(self, route: str, body: dict[str, Any], context: Context) -> Any:
        """The call that blocks. What breaks it is not tried again here: the server may still be at it."""
        task_id = body["force_task_id"]
        self._calls.add(task_id)
        try:
            return (await self.request("POST", f"/sdapi/v1/{route}", context, json=body, once=True)).value()
        finally:
            self._calls.discard(task_id)

    async def look(self, task_id: str, url: str = "", shown: int | None = None) -> Look:
        """The state of the whole server at `url`, which names no task; then where this one is, as only its page knows.

        In this order, because an interrupt relies on what is said of the task.
        """
        at, previews = "" if url in ("", self.base_url) else url, shown is not None and self.config.previews
        look = await self._whole(at, bool(url), previews and not self._has_page)
        asked = {"id_task": task_id, "id_live_preview": -1 if shown is None else shown, "live_preview": previews}
        told = await self._told(at, bool(url), asked)
        if told.get("queued") and not told.get("active"):
            return look._replace(standing=Standing.QUEUED, message=str(told.get("textinfo") or ""))
        if not told.get("active"):
            alone = self.config.exclusive and not self._calls - {task_id} and _on_a_task(look)
            here = Standing.RUNNING if alone else Standing.UNKNOWN
            return look._replace(standing=Standing.ENDED if told.get("completed") else here)
        if not look.working:
            look = await self._whole(at, bool(url), False)  # it has only begun; or it failed, and stays the current one
        preview = str(told.get("live_preview") or "").partition(",")[2]
        return look._replace(
            standing=Standing.RUNNING if _on_a_task(look) else Standing.ENDED,
            fraction=min(1.0, max(0.0, float(told.get("progress") or 0.0))),
            eta_s=told.get("eta"),
            message=str(told.get("textinfo") or ""),
            preview=preview,
            preview_id=int(told.get("id_live_preview") or -1),
        )

    async def _whole(self, at: str, again: bool, preview: bool) -> Look:
        query = {"skip_current_image": "false" if preview else "true"}
        return look_at((await self.request("GET", f"{at}/sdapi/v1/progress", params=query, once=not again)).json())

    async def _told(self, at: str, again: bool, asked: dict[str, Any]) -> dict[str, Any]:
        """What the page's route says of a task; nothing where there is no page."""
        path = f"{at}/internal/progress"
        answer = await self.request("POST", path, json=asked, once=not again, accept=NO_PAGE, repeatable=True)
        self._has_page = answer.status not in NO_PAGE
        return dict(answer.json()) if self._has_page else {}

    async def interrupt(self, url: str = "") -> None:
        """Whatever runs: see `Task`."""
        at = "" if url == self.base_url else url
        await self.request("POST", f"{at}/sdapi/v1/interrupt", once=True)

    async def options(self) -> dict[str, Any]:
        """All settings."""
        return dict((await self.request("GET", "/sdapi/v1/options")).json())

    async def listed(self, route: str) -> list[dict[str, Any]] | None:
        """What there is to choose from; None: the server does not tell."""
        answer = await self.request("GET", f"/sdapi/v1/{route}", accept=NO_ROUTE)
        return None if answer.status in NO_ROUTE else list(answer.json())

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
        working=count != 0,
        job=str(state.get("job") or ""),
        fraction=min(1.0, max(0.0, fraction)) if count > 0 else SETUP_FRACTION if count else 0.0,
        eta_s=float(body.get("eta_relative") or 0.0) if count > 0 else None,
        step=int(state.get("sampling_step") or 0),
        steps=int(state.get("sampling_steps") or 0),
        interrupted=bool(state.get("interrupted")),
        message=str(body.get("textinfo") or ""),
        preview=str(body.get("current_image") or ""),
    )


def _on_a_task(look: Look) -> bool:
    return look.working and look.job not in NOT_TASKS
