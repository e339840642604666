"""ComfyUI elsewhere, behind a proxy that asks for credentials."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.base import ConnectorConfig
from empd.connectors.service.comfyui.connector import ComfyUIConfig, ComfyUIConnector


class ComfyUIRemoteConfig(ComfyUIConfig):
    """A network may be gone for longer than a restart takes: the prompt goes on meanwhile, and is found again."""

    poll_interval_s: float = 10.0
    outage_s_max: float = 300.0


class ComfyUIRemoteConnector(ComfyUIConnector):
    """`base_url` (`https://…`) with `auth`, `headers`, `ca_file`, `proxy` as every HTTP service has them; the WebSocket
    is opened with the same. Payload as for ComfyUILocalConnector."""

    connector_id: ClassVar[str] = "comfyui-remote"
    Config: ClassVar[type[ConnectorConfig]] = ComfyUIRemoteConfig
    default_base_port: ClassVar[int] = 0
