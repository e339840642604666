"""A hosted WebUI, behind a network and other users."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.base import ConnectorConfig
from empd.connectors.protocol.retry import RetryConfig
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.server import A1111Config


class A1111CloudConfig(A1111Config):
    """Looks less often, has no previews sent over the network unless asked to, and is patient with it."""

    poll_interval_s: float = 2.0
    previews: bool = False
    connect_timeout_s: float = 30.0
    health_timeout_s: float = 15.0
    retry: RetryConfig = RetryConfig(attempts_max=6)


class A1111CloudConnector(A1111Connector):
    """`base_url` (`https://…`) with `auth`, `headers`, `ca_file`, `proxy`. Payload as for A1111RestConnector."""

    connector_id: ClassVar[str] = "a1111-cloud"
    Config: ClassVar[type[ConnectorConfig]] = A1111CloudConfig
