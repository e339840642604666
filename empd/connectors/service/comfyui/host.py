"""What a run needs of its connector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from empd.connectors.context import Context
from empd.connectors.service.comfyui.listener import Heard, Listener
from empd.connectors.service.comfyui.log import ComfyUILog
from empd.connectors.service.comfyui.prompt import Pace
from empd.connectors.service.comfyui.server import Server


class Host(Protocol):
    """The connector, as a run sees it."""

    vram_used_bytes: int

    @property
    def pace(self) -> Pace:
        """How often to look, how long to wait."""

    @property
    def input_subfolder(self) -> str:
        """Where uploaded files go."""

    @property
    def previews(self) -> bool:
        """Whether previews are shown as partial results."""

    def server(self, url: str = "") -> Server:
        """The instance at `url`; empty: this worker's own."""

    def listener(self, url: str, prompt_id: str, on_heard: Callable[[Heard], None]) -> Listener:
        """A listener to one prompt."""

    def write(self, context: Context, record: ComfyUILog, name: str, fields: Mapping[str, Any]) -> None:
        """Logs what is known of a prompt."""
