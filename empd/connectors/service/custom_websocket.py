"""A WebSocket service from the mapping alone: templates for what is sent, JSON pointers and words for what comes.

`messages` are templates (`{payload/prompt}`, `{job_id}`: see `protocol/template`); `places` say where things lie in
the service's messages; `words` say which of its words (in any case, at `places.type`) mean what.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from empd.connectors.base import Cancellable, ConnectorConfig, Site
from empd.connectors.context import Context
from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.protocol.asking import AskingConnector
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.dialect import Progress
from empd.connectors.protocol.json_pointer import MISSING, Pointer
from empd.connectors.protocol.template import Template
from empd.connectors.service.custom_websocket_shape import CustomWebSocketConfig
from empd.connectors.service.rest_shape import PLACES, Words, values_of

_KINDS = {
    "submitted": MessageType.JOB_SUBMIT,
    "progress": MessageType.JOB_PROGRESS,
    "complete": MessageType.JOB_COMPLETE,
    "error": MessageType.JOB_ERROR,
    "cancelled": MessageType.JOB_CANCELLED,
    "heartbeat": MessageType.HEARTBEAT,
    "connection": MessageType.CONNECTION,
}


class CustomWebSocketConnector(AskingConnector, Cancellable):
    """Any service that tells its jobs apart by an id in each message."""

    connector_id = "custom_websocket"
    service_type = "websocket"
    Config: ClassVar[type[ConnectorConfig]] = CustomWebSocketConfig
    config: CustomWebSocketConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        own, messages, words = self.config, self.config.messages, self.config.words
        try:
            self._job = Template(messages.job, PLACES)
            self._cancel = Template(messages.cancel, ("job_id",))
            self._query = Template(messages.query, ("job_id",))
            self._places = {name: Pointer(text) for name, text in msgspec.structs.asdict(own.places).items()}
        except ValueError as error:
            raise ConnectorError(str(error), retry=False) from None
        self.job_ids = own.job_ids
        self.resumes = messages.query is not None
        self.confirms_cancel = messages.cancel is not None and bool(words.cancelled)
        self._type = Words(own.places.type, ())
        self._kinds = {word.lower(): kind for name, kind in _KINDS.items() for word in getattr(words, name)}
        self._unknown = {word.lower() for word in words.unknown}

    async def on_connection_established(self, again: bool) -> None:
        """Logs in."""
        if self.config.messages.login is not None:
            await self.send(self.config.messages.login)

    def build_job_message(self, job_id: str, context: Context) -> Any:
        """From `messages.job`."""
        return self._job.render({**values_of(context), "job_id": job_id})

    def build_cancel_message(self, job_id: str) -> Any:
        """From `messages.cancel`."""
        return self._cancel.render({"job_id": job_id})

    def build_query_message(self, job_id: str) -> Any:
        """From `messages.query`."""
        return self._query.render({"job_id": job_id})

    def build_heartbeat_message(self) -> Any:
        """`messages.heartbeat`."""
        return self.config.messages.heartbeat

    def classify_message(self, message: Any) -> MessageType:
        """By the word at `places.type`."""
        return self._kinds.get(self._type.word(message) or "", MessageType.UNKNOWN)

    def says_unknown(self, message: Any) -> bool:
        """By the word at `places.type`."""
        return self._type.word(message) in self._unknown

    def extract_job_id(self, message: Any) -> str | None:
        """What lies at `places.id`."""
        return self._text("id", message)

    def extract_reference(self, message: Any) -> str | None:
        """What lies at `places.reference`."""
        return self._text("reference", message)

    def extract_progress(self, message: Any) -> Progress | None:
        """What lies at `places.progress` and `places.message`."""
        found = self._places["progress"].find(message)
        if not isinstance(found, (int, float)) or isinstance(found, bool):
            return None
        return Progress(found / self.config.progress_scale, self._text("message", message) or "")

    def extract_error(self, message: Any) -> ConnectorError:
        """What lies at `places.error`, a text or an error object."""
        found = self._places["error"].find(message, None)
        body = found if isinstance(found, dict) else message
        row = self.verdicts.of_code(*self.verdicts.codes(body))
        text = found if isinstance(found, str) else self.verdicts.message(body)
        return row.error(text) if row is not None else ConnectorError(f"the service says: {text or 'error'}")

    async def parse_job_result(self, message: Any, context: Context) -> Any:
        """What lies at `places.result`."""
        found = self._places["result"].find(message)
        if found is MISSING:
            raise BadResponse(f"the service's message has nothing at {self.config.places.result}")
        return found

    def _text(self, place: str, message: Any) -> str | None:
        found = self._places[place].find(message)
        return str(found) if isinstance(found, (str, int)) and not isinstance(found, bool) else None
