"""Connectors whose configuration changes while they run."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, Service
from empd.connectors.failures import ServiceUnavailable


class WordConfig(ConnectorConfig):
    word: str
    good: bool = True


class WordConnector(Service):
    """Answers with its word, and how often it was opened."""

    connector_id = "word"
    Config: ClassVar[type[ConnectorConfig]] = WordConfig
    config: WordConfig
    health_interval_s = 0.2

    async def open(self) -> None:
        if not self.config.good:
            raise ServiceUnavailable("it cannot be opened like this", retry=False)

    async def process(self, job: Any, context: Any) -> Any:
        return {"word": self.config.word, "object": id(self)}


class LiveConnector(WordConnector):
    """Takes a configuration over while it runs."""

    connector_id = "live"

    async def update_config(self, config: ConnectorConfig) -> bool:
        return True
