"""A WebUI whose jobs are watched closely."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.base import ConnectorConfig
from empd.connectors.service.a1111.connector import A1111Connector
from empd.connectors.service.a1111.server import A1111Config


class A1111LiveConfig(A1111Config):
    """Looks more often than the others."""

    poll_interval_s: float = 0.15


class A1111WebSocketConnector(A1111Connector):
    """Live updates. They come by the routes of the server's own page, which uses no WebSocket for them either. Payload
    as for A1111RestConnector."""

    connector_id: ClassVar[str] = "a1111-websocket"
    Config: ClassVar[type[ConnectorConfig]] = A1111LiveConfig
