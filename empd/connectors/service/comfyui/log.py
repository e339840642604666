"""What is logged of a prompt."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.logger import ServiceLog


class ComfyUILog(ServiceLog):
    """One record at the start and at the end of each prompt. `vram_usage` in bytes, as last seen; `model_name`: the
    files that the workflow names; `workflow_hash`: the same for workflows that differ in seeds alone."""

    schema: ClassVar[str] = "comfyui"
    prompt_id: str = ""
    client_id: str = ""
    websocket_message_type: str = ""
    node_id: str = ""
    execution_step: int = 0
    queue_remaining: int = 0
    model_name: str = ""
    vram_usage: int = 0
    workflow_hash: str = ""
