"""Workflow templates with named parameters, seeds, input files and selected outputs."""

from __future__ import annotations

from typing import ClassVar

from empd.connectors.base import ConnectorConfig
from empd.connectors.context import Context
from empd.connectors.service.comfyui.connector import ComfyUIConfig, ComfyUIConnector
from empd.connectors.service.comfyui.request import Request, read_advanced


class ComfyUIAdvancedConfig(ComfyUIConfig):
    """`templates_dir`: a folder of templates, `NAME.json` each."""

    templates_dir: str = ""


class ComfyUIAdvancedConnector(ComfyUIConnector):
    """Payload: `template` (a name in `templates_dir`) or `workflow`; `parameters` by name, or by `NODE.INPUT`; `seed`
    (a number, or `"random"`: then the same in every attempt); `files`; `outputs` (nodes by id, title or class)."""

    connector_id: ClassVar[str] = "comfyui-advanced"
    Config: ClassVar[type[ConnectorConfig]] = ComfyUIAdvancedConfig
    config: ComfyUIAdvancedConfig

    def read(self, context: Context) -> Request:
        """What the payload asks for. Raises InvalidInput."""
        return read_advanced(context.payload, self.config.templates_dir, context.job_id)
