"""ComfyUI on this box: one instance per GPU."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.service.comfyui.connector import ComfyUIConnector


class ComfyUILocalConnector(ComfyUIConnector):
    """The instance of the worker's own GPU: `base_port` + GPU index, 8188 for the first.

    Payload: a workflow in the API format, or `{"workflow": …, "files": …, "outputs": …}`.
    """

    connector_id: ClassVar[str] = "comfyui-local"


class ComfyUIWebSocketConnector(ComfyUILocalConnector):
    """The name that earlier mappings use. Prompts go over HTTP, as stock ComfyUI wants them; the WebSocket tells how
    far they are."""

    connector_id: ClassVar[str] = "comfyui-websocket"
