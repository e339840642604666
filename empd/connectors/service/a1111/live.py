"""A WebUI with its page: progress of each task by itself, and its place in the queue."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.context import Context
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.server import NO_ROUTE
from empd.connectors.service.a1111.task import Look


class A1111WebSocketConnector(A1111Connector):
    """The name that earlier mappings use: live updates, by the routes of the server's own page (which uses no WebSocket
    for them either). `/internal/progress` knows each task and each preview by its id, `/internal/pending-tasks` what
    is before it. A server without its page has neither; there the state of the whole server is looked at."""

    connector_id: ClassVar[str] = "a1111-websocket"

    async def look(self, task_id: str, context: Context | None = None) -> Look:
        """By the task. Without `context` (for an interrupt) by the state of the whole server, which names what runs."""
        if context is None:
            return await super().look(task_id)
        asked = {"id_task": task_id, "id_live_preview": -1, "live_preview": self.config.previews}
        answer = await self.request("POST", "/internal/progress", json=asked, once=True, accept=NO_ROUTE)
        if answer.status in NO_ROUTE:
            return await super().look(task_id, context)
        body: dict[str, Any] = answer.json()
        if body.get("queued"):
            return Look("", working=False, message=await self._place(task_id))
        look = Look(
            task=task_id if body.get("active") else "",
            working=bool(body.get("active")),
            fraction=min(1.0, max(0.0, float(body.get("progress") or 0.0))),
            eta_s=float(body.get("eta") or 0.0),
            message=str(body.get("textinfo") or ""),
        )
        return look._replace(preview=body["live_preview"]) if body.get("live_preview") else look

    async def _place(self, task_id: str) -> str:
        """How many are before a task that waits."""
        answer = await self.request("GET", "/internal/pending-tasks", once=True, accept=NO_ROUTE)
        tasks = answer.json().get("tasks", []) if answer.status not in NO_ROUTE else []
        before = tasks.index(task_id) if task_id in tasks else 0
        return f"queued behind {before + 1}" if task_id in tasks else "queued"
