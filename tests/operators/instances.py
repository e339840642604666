"""Connectors to servers of which there is one for each GPU, as an operator would write them."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from urllib.parse import urlsplit

from empd.connectors.base import ConnectorConfig, DescribesService, EndpointConfig, HasModels, Service
from empd.connectors.failures import ServiceUnavailable
from empd.connectors.logger import ServiceLog


class PingConfig(EndpointConfig):
    api_key: str = ""


class PingLog(ServiceLog):
    schema = "ping"
    port: int = 0


class PingConnector(Service, HasModels, DescribesService):
    """Asks its own instance for its name."""

    connector_id = "ping"
    service_type = "ping"
    protocol = "http"
    health_interval_s = 0.2
    Config: ClassVar[type[ConnectorConfig]] = PingConfig
    config: PingConfig

    async def ask(self) -> str:
        url = urlsplit(self.site.endpoint)
        try:
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
        except OSError as error:
            self.site.report("circuit", {self.site.endpoint: "open"})
            raise ServiceUnavailable(f"no answer from {self.site.endpoint}") from error
        name = await reader.read()
        writer.close()
        self.site.report("circuit", {self.site.endpoint: "closed"})
        return name.decode()

    async def check_health(self) -> bool:
        return bool(await self.ask())

    async def models(self) -> list[str]:
        return ["tiny"]

    async def service_info(self) -> dict[str, Any]:
        return {"answers": await self.ask()}

    async def process(self, job: Any, context: Any) -> Any:
        self.site.metrics.counter("pings_total", {"kind": "job"}).inc()
        name = await self.ask()
        self.log.with_job(job).service(PingLog(port=int(name)))
        return {"name": name, "worker": self.site.worker, "key": context.idempotency_key, "trace": context.trace}
