"""REST services from the mapping alone: one call, or submit and poll.

`endpoint`, `headers`, `params` and `body` are templates (`{payload/prompt}` is that part of the payload, typed: see
`protocol/template`); JSON pointers say where things lie in answers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from empd.connectors.base import ConnectorConfig, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.protocol.http_poll import PollConfig, Standing, Status, SubmitAndPoll
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.protocol.json_pointer import Pointer
from empd.connectors.service.rest_shape import Shaped, Words, found_at


class RestSyncConfig(HTTPConfig):
    """`result`: where the result lies (empty: the whole answer). `ok_place` and `ok_words`: where a good answer says
    that it is one, for services that fail with status 200."""

    body: Any = None
    params: dict[str, Any] = {}
    result: str = ""
    ok_place: str = ""
    ok_words: tuple[str, ...] = ("true", "ok", "success")


class RestSyncConnector(Shaped):
    """One call, one answer."""

    connector_id = "rest_sync"
    service_type = "rest"
    Config: ClassVar[type[ConnectorConfig]] = RestSyncConfig
    config: RestSyncConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self._result = Pointer(self.config.result)
        self._ok = Words(self.config.ok_place, self.config.ok_words) if self.config.ok_place else None

    def validate_service_response(self, response: HTTPResponse) -> bool:
        """Whether the answer says that it is good."""
        return self._ok is None or self._ok.says(response.json())

    def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """What lies at `result`."""
        return found_at(self._result, response)


class Places(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """JSON pointers: the id in the answer to the submission; the rest in a status, `result` in the last one or in the
    answer of `result_path`."""

    id: str = "/id"
    status: str = "/status"
    progress: str = "/progress"
    message: str = "/message"
    error: str = "/error"
    result: str = ""


class RestAsyncConfig(PollConfig):
    """A status whose word (in any case) is in neither list is running; one without a word is unknown.

    `progress_scale`: what stands for all of it (100 for percent).
    """

    body: Any = None
    params: dict[str, Any] = {}
    places: Places = Places()
    done_words: tuple[str, ...] = ("completed", "complete", "finished", "done", "success", "successful", "succeeded")
    failed_words: tuple[str, ...] = ("failed", "failure", "error", "cancelled", "canceled", "timeout", "aborted")
    progress_scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class RestAsyncConnector(Shaped, SubmitAndPoll):
    """Submitted, polled, collected; resumed after a crash; cancelled where `cancel_path` says how."""

    connector_id = "rest_async"
    service_type = "rest"
    Config: ClassVar[type[ConnectorConfig]] = RestAsyncConfig
    config: RestAsyncConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        places = self.config.places
        self._id, self._result, self._error = Pointer(places.id), Pointer(places.result), Pointer(places.error)
        self._progress, self._message = Pointer(places.progress), Pointer(places.message)
        self._done = Words(places.status, self.config.done_words)
        self._failed = Words(places.status, self.config.failed_words)

    def extract_job_id(self, response: HTTPResponse, context: Context) -> str:
        """What lies at `places.id`."""
        found = self._id.find(response.json())
        if not isinstance(found, (str, int)) or isinstance(found, bool) or found == "":
            raise BadResponse(f"the answer to the submission has no id at {self._id.text}")
        return str(found)

    def parse_status(self, response: HTTPResponse, context: Context) -> Status:
        """By the word at `places.status`."""
        body = response.json()
        word = self._done.word(body)
        if word is None:
            return Status(Standing.UNKNOWN)
        if self._failed.has(word):
            return Status(Standing.TERMINAL, error=self._failure(word, body))
        if self._done.has(word):
            return Status(Standing.TERMINAL, 1.0)
        progress, message = self._progress.find(body), self._message.find(body, "")
        fraction = progress / self.config.progress_scale if isinstance(progress, (int, float)) else None
        return Status(Standing.RUNNING, fraction, message if isinstance(message, str) else "")

    def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """What lies at `places.result`."""
        return found_at(self._result, response)

    def _failure(self, word: str, body: Any) -> ConnectorError:
        row = self.verdicts.of_code(*self.verdicts.codes(body))
        told = self._error.find(body, None)
        text = self.redact(told if isinstance(told, str) else self.verdicts.message(body))
        if row is not None:
            return row.error(text)
        return ConnectorError(f"the service says {word}: {text}" if text else f"the service says {word}")
