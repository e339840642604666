"""A WebUI on this box: one instance per GPU."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.service.a1111.connector import A1111Connector


class A1111LocalConnector(A1111Connector):
    """The instance of the worker's own GPU: `base_port` + GPU index, 7860 for the first (`--nowebui` listens on 7861).
    Payload as for A1111RestConnector."""

    connector_id: ClassVar[str] = "a1111-local"
    default_base_port: ClassVar[int] = 7860
