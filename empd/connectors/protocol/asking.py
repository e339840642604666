"""Services that are asked for a job by a message: the answer is a message about that job like any other."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, Resumable, Site
from empd.connectors.context import Context
from empd.connectors.failures import ServiceUnavailable
from empd.connectors.protocol.dialect import RUNNING, UNKNOWN, Answer
from empd.connectors.protocol.websocket import WebSocketConnector


class AskingConnector(WebSocketConnector, Resumable):
    """A service that answers `build_query_message` by any message about the job: where it stands, or its end.

    Only one for which `says_unknown` is true means that the service does not know the job.
    """

    query_timeout_s: ClassVar[float] = 30.0

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self._asked: dict[str, set[asyncio.Future[Answer]]] = {}

    def build_query_message(self, job_id: str) -> Any:
        """The message that asks for a job."""
        return {"type": "query", "id": job_id}

    def says_unknown(self, message: Any) -> bool:
        """Whether a message says that the service does not know the job it names."""
        return False

    async def query_job(self, job_id: str, context: Context) -> Answer:
        """Asks, and waits for the first message about the job. An end among them takes its own way to the job.

        A new connection asks for a job while the question on the lost one still waits: one answer is for both.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        askers = self._asked.setdefault(job_id, set())
        askers.add(answer)
        try:
            await self.send(self.build_query_message(job_id))
            async with asyncio.timeout(self.query_timeout_s):
                return await answer
        except TimeoutError:
            raise ServiceUnavailable(f"no answer about the job within {self.query_timeout_s:g} s") from None
        finally:
            askers.discard(answer)
            if not askers:
                del self._asked[job_id]

    def on_message(self, message: Any, size: int) -> None:
        """Settles the question that a message answers, beside its usual way."""
        super().on_message(message, size)
        for answer in self._asked.get(self.extract_job_id(message) or "", ()) if self._asked else ():
            if not answer.done():
                answer.set_result(UNKNOWN if self.says_unknown(message) else RUNNING)
